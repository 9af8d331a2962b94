// Stage: engine. Who polls for those who do not wait. A thread of its own: while a waiting caller
// drives it rests; else it polls, and sleeps in the engine's epoll set until a peer, a socket or
// the clock wants something. Or, in its place, the listener: one waiting caller that has given up
// spinning and sleeps in that set itself, so that what it waits for wakes it without a detour.
// What always holds: when nobody drives, either this thread polls, or every peer knows that it must
// ring, and somebody who then polls sleeps in the set. A driver silences the bells and sets them
// again when it leaves.
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
  // The caller, who drives, will listen until `until` or the engine's clock is due: it leaves the
  // wheel, then calls doze(), then hear(). False: there is more to do first.
  bool listen(TimeNs now, TimeNs until);
  bool has_listener() const { return listening_; }
  void hear();
  // Without the lock: returns when anything is heard, when the bell was rung, or in time.
  void doze();
  int bell() const { return bell_fd_; }

  std::uint64_t sleeps() const { return sleeps_.load(std::memory_order_relaxed); }
  std::uint64_t rests() const { return rests_.load(std::memory_order_relaxed); }

 private:
  void run();
  bool may_sleep();
  bool fall_asleep(TimeNs now);
  // Of the thread itself.
  void sleep(TimeNs until);
  void wake_up();
  int wait_in_set(TimeNs until);  // the descriptor that had something to say, or -1
  // Wakes whoever sleeps past the time at which the Node wants to be called.
  void mind();
  void rouse();  // the listener, or else the thread
  TimeNs longest_sleep(TimeNs now) const;
  void kick();

  const int wait_set_;
  int kick_fd_ = -1;  // wakes the thread
  int bell_fd_ = -1;  // wakes the listener
  Lock& lock_;
  Exchange& exchange_;
  Notifier& notifier_;
  Wheel& wheel_;
  // Under the engine lock.
  bool asleep_ = false;       // in epoll_wait, or about to be
  bool audible_ = false;      // asleep, and the peers ring
  TimeNs wakes_at_ = 0;       // asleep at the longest until
  bool listening_ = false;    // a waiting caller is the listener
  bool relieved_ = false;     // the thread rests for as long as there is one
  int heard_ = -1;            // what ended the thread's sleep
  TimeNs listens_until_ = 0;  // the listener's own; read by it without the lock
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint32_t> kicks_{0};  // futex: it rests on this
  std::atomic<std::uint64_t> sleeps_{0}, rests_{0};
  std::thread thread_;
};

}  // namespace tent
