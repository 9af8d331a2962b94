// Stage: transport. How the peers on this host say which of their links has work for this process,
// without a system call while it is awake: one shared page with a bit per link and a sleeping flag,
// and an eventfd that is written only when the flag is set. One per engine.
// Threads: prepare_sleep() and woke() are for whoever answers for the engine's sleep, one at a
// time; the rest is for the thread that holds the engine lock. Peers ring in their own processes.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "transports/descriptor.h"

namespace tent {

struct DoorbellPage;

class Doorbell {
 public:
  static constexpr int kSlots = 1024;
  using Slots = std::array<std::uint64_t, kSlots / 64>;  // a set of slots, a bit each

  // The eventfd joins the engine's epoll set. Throws std::system_error.
  explicit Doorbell(int wait_set);
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  // Before the wait on the epoll set. True: peers will wake it up. False: a link is ready already,
  // nothing was changed, poll again instead of waiting.
  bool prepare_sleep();
  // After the wait, or when a caller drives the engine while the progress thread sleeps (who then
  // calls prepare_sleep() again before it leaves): from here on peers write no eventfd.
  void woke();

  // ---- for the transports ----------------------------------------------------------------------
  int take_slot();  // -1: all are taken
  void free_slot(int slot);
  // Moves the ready slots among `mine` into `ready`; false when there is none.
  bool take_ready(const Slots& mine, Slots& ready);
  // The slot is to be looked at again though no peer rings: its work was ended by a bound.
  void again(int slot);
  std::uint32_t wakes() const { return wakes_; }  // how often woke() was called
  // What a peer needs to ring: the page's memfd and the eventfd.
  int page_fd() const { return memory_.get(); }
  int event_fd() const { return event_.get(); }

 private:
  bool any_ready() const;

  Descriptor memory_, event_;
  Mapping mapping_;
  DoorbellPage* page_ = nullptr;
  // Private, so that no peer can undo them. Atomic, since prepare_sleep() may run without the lock.
  std::array<std::atomic<std::uint64_t>, kSlots / 64> taken_{}, again_{};
  std::atomic<std::uint32_t> wakes_ = 0;
};

// A peer's doorbell, seen from here: one slot of it. Owned by a link; engine lock held.
class PeerDoorbell {
 public:
  PeerDoorbell() = default;
  // Checks what the peer sent: a page that cannot shrink under us, an eventfd, a slot that exists.
  static Status open(Descriptor page, Descriptor event, std::uint64_t slot, PeerDoorbell& out);
  explicit operator bool() const { return page_ != nullptr; }
  void ring();

 private:
  Descriptor event_;
  Mapping mapping_;
  DoorbellPage* page_ = nullptr;
  std::size_t word_ = 0;
  std::uint64_t bit_ = 0;
};

}  // namespace tent
