// Stage: engine. Which thread polls. A thread that waits takes the wheel and polls until its wait
// ends; others that wait sleep, and one of them is woken to drive on when it leaves. Who waits for
// something urgent takes it away from who does not: to be woken costs more than a small transfer.
// While nobody has the wheel the progress thread polls. At most one thread spins at any time, but
// for the moment until a driver notices that it is none any more.
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

  using Turn = std::uint64_t;  // one driver's time at the wheel; never comes twice; 0: nobody's

  // 0: another one keeps it.
  Turn take(bool urgent) {
    Turn driver = driver_.load(std::memory_order_relaxed);
    if (driver != 0 && (!urgent || is_urgent(driver))) return 0;
    const Turn mine = turns_.fetch_add(2, std::memory_order_relaxed) | Turn(urgent);
    const bool taken = driver_.compare_exchange_strong(driver, mine, std::memory_order_seq_cst);
    return taken ? mine : 0;
  }
  bool holds(Turn mine) const { return driver_.load(std::memory_order_relaxed) == mine; }
  // `back_soon`: the driver's wait ended, so its thread goes on and may well wait again. Else it
  // gave up spinning and nothing happens at all. A no-op for a driver that lost the wheel.
  void leave(Turn mine, TimeNs now, bool back_soon) {
    left_at_.store(back_soon ? now : 0, std::memory_order_relaxed);
    if (!driver_.compare_exchange_strong(mine, 0, std::memory_order_seq_cst)) return;
    if (back_soon && sleeping_.load(std::memory_order_seq_cst) != 0) wake_one();
  }
  // A wait ended without driving, and another one is likely to follow.
  void passed(TimeNs now) { left_at_.store(now, std::memory_order_relaxed); }
  bool taken() const { return driver_.load(std::memory_order_seq_cst) != 0; }
  bool in_use(TimeNs now) const {
    return taken() || now - left_at_.load(std::memory_order_relaxed) < kRest;
  }

  // Sleeps until `what` is ready, a driver left, or `until`; may return early for no reason.
  // `behind`: only while somebody else drives.
  void sleep(Waitable& what, TimeNs until, bool behind) {
    const std::uint32_t announced = what.announce();
    {
      const std::lock_guard lock(mutex_);
      sleepers_.push_back(&what);
      sleeping_.fetch_add(1, std::memory_order_seq_cst);
    }
    // A driver that left before it could see this sleeper is seen here, and the other way round.
    if (!behind || taken()) what.sleep(announced, until);
    const std::lock_guard lock(mutex_);
    const auto mine = std::find(sleepers_.begin(), sleepers_.end(), &what);
    if (mine != sleepers_.end()) {  // else the driver that nudged it took it out
      sleepers_.erase(mine);
      sleeping_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

 private:
  void wake_one() {
    const std::lock_guard lock(mutex_);
    const auto first = std::find_if(sleepers_.begin(), sleepers_.end(),
                                    [](const Waitable* what) { return !what->ready(); });
    if (first == sleepers_.end()) return;
    (*first)->nudge();  // under the lock: it may be gone as soon as its sleeper is
    sleepers_.erase(first);
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
  }

  static bool is_urgent(Turn turn) { return (turn & 1) != 0; }

  std::atomic<Turn> driver_{0}, turns_{2};
  std::atomic<TimeNs> left_at_{0};
  std::atomic<int> sleeping_{0};
  std::mutex mutex_;
  std::vector<Waitable*> sleepers_;  // oldest first; once per sleeping thread
};

}  // namespace tent
