// Stage: engine. The thread that polls for those who do not wait. While a waiting caller drives it
// rests; else it polls, and sleeps in the engine's epoll set until a peer, a socket or the clock
// wants something.
// What always holds: when nobody drives, either this thread polls, or every peer knows that it must
// ring. A driver silences the bells and sets them again when it leaves.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "engine/exchange.h"
#include "engine/lock.h"
#include "engine/notifier.h"
#include "engine/wheel.h"

namespace tent {

class Progress {
 public:
  // Starts the thread. `wait_set` is the epoll descriptor that the transports joined.
  Progress(int wait_set, Lock& lock, Exchange& exchange, Notifier& notifier, Wheel& wheel);
  ~Progress();
  // Ends the thread. The engine lock must not be held.
  void stop();

  // All below under the engine lock.
  // A driver polls from here on: peers need not ring.
  void silence();
  // The driver leaves. `at_once`: nobody polls from now on; else it may be back within
  // Wheel::kRest.
  void take_over(bool at_once);
  // Wakes the thread when it would sleep past the time at which the Node wants to be called.
  void mind();

  std::uint64_t sleeps() const { return sleeps_.load(std::memory_order_relaxed); }
  std::uint64_t rests() const { return rests_.load(std::memory_order_relaxed); }

 private:
  void run();
  bool may_sleep();
  bool fall_asleep(TimeNs now);
  void sleep(TimeNs until);
  void wake_up();
  void kick();

  const int wait_set_;
  int kick_fd_ = -1;
  Lock& lock_;
  Exchange& exchange_;
  Notifier& notifier_;
  Wheel& wheel_;
  // Under the engine lock.
  bool asleep_ = false;   // in epoll_wait, or about to be
  bool audible_ = false;  // asleep, and the peers ring
  TimeNs wakes_at_ = 0;   // asleep at the longest until
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint32_t> kicks_{0};  // futex: it rests on this
  std::atomic<std::uint64_t> sleeps_{0}, rests_{0};
  std::thread thread_;
};

}  // namespace tent
