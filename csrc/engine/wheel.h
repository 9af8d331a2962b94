// Stage: engine. Which thread polls. A thread that waits takes the wheel and polls until its wait
// ends; others that wait sleep, and one of them is woken to drive on when it leaves. While nobody
// has the wheel the progress thread polls, or one of the sleepers listens for it (see progress.h).
// At most one thread spins at any time.
// Any thread. Its small lock is taken last; nothing is called while it is held.
#pragma once

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "engine/waitable.h"

namespace tent {

class Wheel {
 public:
  // For so long after a driver left, another wait is likely to follow and the progress thread
  // rests.
  static constexpr TimeNs kRest = 200 * kMicrosecond;

  bool take() {
    return !taken_.load(std::memory_order_relaxed) &&
           !taken_.exchange(true, std::memory_order_acquire);
  }
  // `back_soon`: the driver's wait ended, so its thread goes on and may well wait again. Else it
  // gave up spinning and nothing happens at all.
  void leave(TimeNs now, bool back_soon) {
    left_at_.store(back_soon ? now : 0, std::memory_order_relaxed);
    taken_.store(false, std::memory_order_seq_cst);
    if (back_soon && sleeping_.load(std::memory_order_seq_cst) != 0) wake_one();
  }
  bool taken() const { return taken_.load(std::memory_order_seq_cst); }
  bool in_use(TimeNs now) const {
    return taken() || now - left_at_.load(std::memory_order_relaxed) < kRest;
  }

  // Sleeps until `what` is ready, a driver left, or `until`; may return early for no reason.
  // `behind`: only while somebody else drives.
  void sleep(Waitable& what, TimeNs until, bool behind) {
    const std::uint32_t announced = what.announce();
    enlist(what);
    // A driver that left before it could see this sleeper is seen here, and the other way round.
    if (!behind || taken()) what.sleep(announced, until);
    leave_list(what);
  }
  // The same for the waiter that listens: `sleep` is how it does.
  template <class Sleep>
  void sleep_listening(Waitable& what, int bell, Sleep sleep) {
    const std::uint32_t announced = what.announce(bell);
    enlist(what);
    if (!Waitable::is_ready(announced)) sleep();
    leave_list(what);
    what.forget_bell();
  }

 private:
  void enlist(Waitable& what) {
    const std::lock_guard lock(mutex_);
    sleepers_.push_back(&what);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
  }
  void leave_list(Waitable& what) {
    const std::lock_guard lock(mutex_);
    const auto mine = std::find(sleepers_.begin(), sleepers_.end(), &what);
    if (mine == sleepers_.end()) return;  // the driver that nudged it took it out
    sleepers_.erase(mine);
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
  }
  void wake_one() {
    const std::lock_guard lock(mutex_);
    const auto first = std::find_if(sleepers_.begin(), sleepers_.end(),
                                    [](const Waitable* what) { return !what->ready(); });
    if (first == sleepers_.end()) return;
    (*first)->nudge();  // under the lock: it may be gone as soon as its sleeper is
    sleepers_.erase(first);
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
  }

  std::atomic<bool> taken_{false};
  std::atomic<TimeNs> left_at_{0};
  std::atomic<int> sleeping_{0};
  std::mutex mutex_;
  std::vector<Waitable*> sleepers_;  // oldest first; once per sleeping thread
};

}  // namespace tent
