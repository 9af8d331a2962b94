// Stage: engine. The thread that polls for those who do not wait. While a waiting caller drives it
// rests; else it polls, and sleeps in the engine's epoll set until a peer, a socket or the clock
// wants something.
// A waiter that gives up spinning may sleep in the set in its place, so that what it waits for
// wakes it up, and not first another thread: it keeps watch. There is one watcher at most; others
// that wait sleep on what they wait for. Meanwhile this thread is retired: it sleeps on a timer,
// which is set when the watcher has gone, since waking it up there and then would cost the watcher
// more than all it still has to do. (It may still be in the set when the watcher comes. If it is
// the one that the kernel wakes, no more than time is lost: it polls, and the watcher is told.)
// What always holds: when nobody drives, this thread polls, or will within Wheel::kRest, or
// somebody is in the set and every peer knows that it must ring. A driver silences the bells and
// sets them again when it leaves.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "engine/exchange.h"
#include "engine/lock.h"
#include "engine/notifier.h"
#include "engine/wheel.h"
#include "transports/descriptor.h"

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
  // Wakes who sleeps past the time at which the Node wants to be called.
  void mind();
  // The caller waits for this and gives up spinning. Until when it may sleep: it is the watcher,
  // the bells are set, and it calls keep_watch() next. 0: there is one, or something to do.
  TimeNs begin_watch(Waitable& what, TimeNs now, TimeNs until);

  // Without the lock. Sleeps until something comes, what it waits for is ready, or its time is
  // over. Returns with the wheel, and then drives at once; 0: it is ready, or somebody else drives.
  Wheel::Turn keep_watch(Waitable& what, TimeNs ends, bool urgent);

  std::uint64_t sleeps() const { return sleeps_.load(std::memory_order_relaxed); }
  std::uint64_t watches() const { return watches_.load(std::memory_order_relaxed); }
  std::uint64_t rests() const { return rests_.load(std::memory_order_relaxed); }

 private:
  enum class Next : std::uint8_t { Poll, Sleep, Retire };

  void run();
  Next look(TimeNs now);
  bool may_sleep();
  void call_back(bool at_once);
  bool anybody_asleep() const { return wakes_at_ != 0 || watch_ends_ != 0; }
  TimeNs bedtime(TimeNs now) const;
  bool sleep(TimeNs until);
  void wake_up();
  void learn(bool rang, TimeNs slept);
  void kick();

  const int wait_set_;
  Descriptor kick_fd_;   // an eventfd in the set
  Descriptor alarm_fd_;  // a timer
  Lock& lock_;
  Exchange& exchange_;
  Notifier& notifier_;
  Wheel& wheel_;
  // The thread's own.
  TimeNs moved_at_ = 0;
  TimeNs spin_;  // polls on for so long after the last movement
  // Under the engine lock.
  TimeNs wakes_at_ = 0;    // the thread is in the set, or about to be, until; 0: it is not
  TimeNs watch_ends_ = 0;  // the same for the watcher
  bool retired_ = false;   // the thread sleeps on the timer, or is about to
  bool called_ = false;    // ... which is set
  bool audible_ = false;   // somebody is asleep in the set, and the peers ring
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint32_t> kicks_{0};  // futex: it rests on this
  std::atomic<std::uint64_t> sleeps_{0}, watches_{0}, rests_{0};
  std::thread thread_;
};

}  // namespace tent
