// Stage: tests. Whether the end of a transfer is one that it may have: P2 (exact) and P3 (ordered
// notice) for a success, P4 (nothing fails without a reason) and P5 (everything ends) for the rest.
// Called by Ledger and World; one thread.
#pragma once

#include "core/node.h"
#include "simulator/tracked.h"

namespace tent::sim {

struct World;

// The transfer has just ended; its memory is as the Node left it.
void check_end(World& world, Tracked& tracked, const Report& report);
// Whether a live transfer has a live other half (or needs none), so that it must come to an end.
bool must_end(World& world, const Tracked& tracked);
// After the schedule: every failure had a reason.
void check_reasons(World& world);

}  // namespace tent::sim
