// Stage: tests. Simulated time: the events to come, earliest first, those of one moment in the
// order in which they were planned. Owned by World; one thread. Time never goes back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/types.h"

namespace tent::sim {

enum class EventKind : std::uint8_t {
  Arrive,   // bytes of pipe a reach the receiver's kernel
  Up,       // link a: its end b is connected
  Told,     // link a: its end b learns that it is dead
  Connect,  // pairing a: a new link on rail b
  Tick,     // process a asked to be called
  Operate,  // operation a of the workload
  Post,     // one side b of message a
  Cancel,   // transfer a
  Strike,   // fault a
  Resume,   // process a runs again
  Restart,  // process a comes back as a new incarnation
  Abandon,  // pairing a: its end b is told that the peer gave up
  NoRails,  // pairing a: the control plane finds no rail of the kinds b >> 1 for its end b & 1
  Review,   // after the faults: is everything coming to its end?
  Finish,   // everything must be clean now
};

struct Event {
  TimeNs at;
  std::uint64_t order;
  EventKind kind;
  std::uint32_t a, b;
};

class Timeline {
 public:
  TimeNs now() const { return now_; }
  bool empty() const { return heap_.empty(); }

  void plan(TimeNs at, EventKind kind, std::uint64_t a = 0, std::uint64_t b = 0) {
    heap_.push_back({std::max(at, now_), order_++, kind, static_cast<std::uint32_t>(a),
                     static_cast<std::uint32_t>(b)});
    std::push_heap(heap_.begin(), heap_.end(), later);
  }
  Event take() {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    Event event = heap_.back();
    heap_.pop_back();
    now_ = event.at;
    return event;
  }

 private:
  static bool later(const Event& x, const Event& y) {
    return x.at != y.at ? x.at > y.at : x.order > y.order;
  }
  TimeNs now_ = 0;
  std::uint64_t order_ = 0;
  std::vector<Event> heap_;
};

}  // namespace tent::sim
