// Stage: engine. Whether the processors are wanted by others. A thread that spins yields, so that a
// peer on its processor can go on; that costs nothing where nobody else wants it, and a whole time
// slice where a program computes there, be its priority ever so low: a yield, unlike a sleep, gives
// no right to be woken. So each yield is timed. After one that took too long, waiters sleep at once
// instead, and yield again after a while to see.
// Any thread; what it remembers is a hint.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>

#include "engine/clock.h"
#include "engine/processors.h"

namespace tent {

class Crowd {
 public:
  bool here(TimeNs now) const { return now < until_.load(std::memory_order_relaxed); }

  // `now` is when it is called. Returns when it is over.
  TimeNs yield(TimeNs now) {
    ::sched_yield();
    const TimeNs over = now_ns();
    learn(now, over);
    return over;
  }
  void learn(TimeNs began, TimeNs over) {
    const TimeNs lasts = lasts_.load(std::memory_order_relaxed);
    if (over - began > (one_processor() ? kSlice : kTooLong)) {
      until_.store(over + lasts, std::memory_order_relaxed);
      lasts_.store(std::min(2 * lasts, kLongest), std::memory_order_relaxed);
    } else if (lasts != kShortest && over - until_.load(std::memory_order_relaxed) > lasts) {
      lasts_.store(kShortest, std::memory_order_relaxed);
    }
  }

 private:
  static constexpr TimeNs kTooLong = 200 * kMicrosecond;
  static constexpr TimeNs kSlice = 2 * kMillisecond;  // one processor: a peer may need some time
  static constexpr TimeNs kShortest = 5 * kMillisecond, kLongest = 80 * kMillisecond;
  std::atomic<TimeNs> until_{0}, lasts_{kShortest};
};

}  // namespace tent
