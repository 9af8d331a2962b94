// Stage: engine. The engine lock. Everything below it (Node, transports, operations) belongs to the
// thread that holds it. A thread that spins in a wait takes and frees it all the time, so whoever
// wants it says so, and the spinning thread steps back.
// Lock order: GIL, engine lock, then the small locks of Notifier, ControlEvents and Wheel.
#pragma once

#include <atomic>
#include <mutex>

#include "engine/clock.h"

namespace tent {

class Lock {
 public:
  void lock() {
    if (mutex_.try_lock()) return;
    wanted_.fetch_add(1, std::memory_order_relaxed);
    // Its holder mostly needs well under a microsecond; sleeping at once would cost fifty.
    bool held = false;
    for (int round = 0; round < kRounds && !held; ++round) {
      cpu_relax();
      held = mutex_.try_lock();
    }
    if (!held) mutex_.lock();
    wanted_.fetch_sub(1, std::memory_order_relaxed);
  }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }
  // For the spinning thread, between two rounds: lets the others in.
  void step_back() const {
    for (int round = 0; round < kRounds && wanted_.load(std::memory_order_relaxed); ++round) {
      cpu_relax();
    }
  }

 private:
  static constexpr int kRounds = 200;
  std::mutex mutex_;
  std::atomic<int> wanted_{0};
};

}  // namespace tent
