// Stage: engine. The one place that reads the clock, and how a spinning thread breathes.
// Any thread; no state.
#pragma once

#include <ctime>

#include "core/types.h"

namespace tent {

inline TimeNs now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return TimeNs(time.tv_sec) * kSecond + time.tv_nsec;
}

// `seconds` from `now`; kNever when that is beyond the clock. Negative counts as now.
inline TimeNs after(TimeNs now, double seconds) {
  if (!(seconds < 1e9)) return kNever;
  return seconds <= 0 ? now : now + TimeNs(seconds * double(kSecond));
}

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

}  // namespace tent
