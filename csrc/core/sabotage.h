// Stage: tests. The fault simulator is built with TENT_SABOTAGE and can break one rule at a time,
// to show that its schedules find the damage. In every other build these are constants and cost
// nothing.
#pragma once

namespace tent::sabotage {
#ifdef TENT_SABOTAGE
inline thread_local bool no_fence = false;    // lost slices are sent again without a fence
inline thread_local bool no_dedup = false;    // a slice that landed twice counts twice
inline thread_local bool early_note = false;  // the notification fires before the last byte
#else
inline constexpr bool no_fence = false, no_dedup = false, early_note = false;
#endif
}  // namespace tent::sabotage
