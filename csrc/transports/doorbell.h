// Stage: transport. How the peers on this host say which of their links has work for this process,
// without a system call while it is awake: one shared page with a bit per link and a sleeping flag,
// and an eventfd that is written only when the flag is set. One per engine.
// Threads: prepare_sleep() and woke() are for whoever answers for the engine's sleep, one at a time;
// the rest is for the thread that holds the engine lock. ring() may run in any process.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

namespace tent {

class Doorbell {
 public:
  static constexpr int kSlots = 1024;
  using Slots = std::array<std::uint64_t, kSlots / 64>;  // a set of slots, a bit each

  // The eventfd joins the engine's epoll set. Throws std::system_error.
  explicit Doorbell(int wait_set);
  ~Doorbell();
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  // Before the wait on the epoll set. True: peers will wake it up. False: a link is ready already,
  // nothing was changed, poll again instead of waiting.
  bool prepare_sleep();
  // After the wait, or when a caller drives the engine while the progress thread sleeps (who then
  // calls prepare_sleep() again before it leaves): from here on peers write no eventfd.
  void woke();
};

}  // namespace tent
