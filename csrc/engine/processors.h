// Stage: engine. Whether a thread that spins keeps the very thread from running that it waits for.
// Any thread; asked once.
#pragma once

#include <sched.h>

namespace tent {

// The process has one processor, as far as the kernel says: a container's share of time is none.
inline bool one_processor() {
  static const bool one = [] {
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) == 1;
  }();
  return one;
}

}  // namespace tent
