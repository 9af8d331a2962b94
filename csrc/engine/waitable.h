// Stage: engine. Something a thread can wait for: a flag that becomes true once, and a place to
// sleep. Made ready under the engine lock, slept on without it. No sleeper misses its wake-up: it
// announces itself in the same word that becomes ready. One of them may sleep elsewhere, in the
// engine's epoll set (progress.h): it names the eventfd that wakes it up there.
#pragma once

#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

#include "engine/clock.h"

namespace tent {

// Sleeps while the word is `expected`, until `until`; may return early for no reason.
inline void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, TimeNs until) {
  timespec time{};
  time.tv_sec = until / kSecond;
  time.tv_nsec = until % kSecond;
  syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, expected, until == kNever ? nullptr : &time,
          nullptr, FUTEX_BITSET_MATCH_ANY);
}

inline void futex_wake(std::atomic<std::uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

class Waitable {
 public:
  bool ready() const { return word_.load(std::memory_order_acquire) & kReady; }
  // True when somebody sleeps on it: call wake() once the engine lock is free.
  bool make_ready() {
    return word_.fetch_or(kReady, std::memory_order_acq_rel) & (kSleeper | kWatcher);
  }
  void wake() {
    const std::uint32_t word = word_.load(std::memory_order_acquire);
    if (word & kSleeper) futex_wake(word_);
    if (word & kWatcher) eventfd_write(watcher_.load(std::memory_order_relaxed), 1);
  }
  // Ends the sleep of all sleepers though nothing is ready.
  void nudge() {
    word_.fetch_add(kNudge, std::memory_order_acq_rel);
    wake();
  }
  // Two steps, so that the sleeper can look around between announcing itself and sleeping.
  std::uint32_t announce() {
    return word_.fetch_or(kSleeper, std::memory_order_acq_rel) | kSleeper;
  }
  void sleep(std::uint32_t announced, TimeNs until) {
    if (!(announced & kReady)) futex_wait(word_, announced, until);
  }
  // Engine lock, both: in between, the end is also written into the eventfd, which outlives this.
  void begin_watch(int event_fd) {
    watcher_.store(event_fd, std::memory_order_relaxed);
    word_.fetch_or(kWatcher, std::memory_order_acq_rel);
  }
  void end_watch() { word_.fetch_and(~kWatcher, std::memory_order_acq_rel); }

 private:
  static constexpr std::uint32_t kReady = 1, kSleeper = 2, kWatcher = 4, kNudge = 8;
  std::atomic<std::uint32_t> word_{0};
  std::atomic<int> watcher_{-1};
};

}  // namespace tent
