// Stage: scheduler. Late binding: a link with room asks which flow it should serve next.
// Foreground before background (with a floor for the background), earlier deadline first, then in
// turns. A link gets a flow only if it would not be the one that finishes last. Pure, one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/types.h"

namespace tent {

struct LinkView {  // what the scheduler may know of a link
  LinkId link = 0;
  RailKind kind = RailKind::Tcp;
  double rate = 0;  // bytes per ns
  TimeNs base_latency = 0;
  std::uint64_t in_flight = 0;
  std::uint64_t slice_bytes = 0;
  TimeNs cost = 0;  // affinity (NUMA, PCIe distance), added to its estimates
};

struct FlowView {
  TransferId flow = 0;
  std::uint64_t left = 0;  // bytes not yet handed to any link
  Priority priority = Priority::Foreground;
  TimeNs deadline = kNever;
  RailKinds rails = kAllRails;
};

// Whether `mine` would finish one more slice before the other links had drained `left` bytes.
bool worth_taking(const LinkView& mine, std::span<const LinkView> links, std::uint64_t left);

// Whether `mine`, which has nothing else to do, should also carry a slice of `bytes` that is in
// flight on `other`, where it ends `ahead` bytes, rather than wait for it: only where that is much
// sooner, because an estimate may be wrong, and a copy in vain costs the rail.
bool worth_doubling(const LinkView& mine, std::uint64_t bytes, const LinkView& other,
                    std::uint64_t ahead);

class Scheduler {
 public:
  // Of every kBackgroundShare slices, one is for the background when it has any.
  static constexpr std::uint32_t kBackgroundShare = 16;
  // Beyond that share a link takes background slices only while no more than this much work is in
  // flight on it: what is urgent later waits behind all of it.
  static constexpr TimeNs kBackgroundQueue = 250 * kMicrosecond;
  // For so long after the last urgent bytes others are likely to follow. Meanwhile the background
  // queues and takes no more than kUrgentQueue of work at a time.
  static constexpr TimeNs kUrgentKept = 100 * kMillisecond;
  static constexpr TimeNs kUrgentQueue = 100 * kMicrosecond;

  void add(const FlowView& flow);
  void remove(TransferId flow);
  void set_left(TransferId flow, std::uint64_t left);
  bool empty() const { return flows_.empty(); }
  bool any_left() const { return total_left_ != 0; }
  std::uint64_t left() const { return total_left_; }

  // The flow that `mine` should serve now, or 0. `may` tells whether the link can carry the flow.
  TransferId next(const LinkView& mine, std::span<const LinkView> links,
                  const std::function<bool(LinkId, TransferId)>& may, TimeNs now);
  // Urgent bytes went another way: inside a message.
  void urgent(TimeNs now) { urgent_at_ = now; }
  // Whether such a flow keeps its slices and its queue short for the sake of what is urgent.
  bool yields(Priority priority, TimeNs now) const {
    return priority == Priority::Background && urgent_lately(now);
  }
  // How many bytes the link's next slice of a flow should have; at least `least`.
  std::uint64_t slice_bytes(const LinkView& mine, Priority priority, std::uint64_t least,
                            TimeNs now) const;

 private:
  struct Entry {
    FlowView view;
    std::uint64_t turn;  // smaller is served first among equals
  };
  TransferId choose(const LinkView& mine, std::span<const LinkView> links, Priority priority,
                    const std::function<bool(LinkId, TransferId)>& may);
  void reorder(std::size_t index);
  bool urgent_lately(TimeNs now) const { return now - urgent_at_ < kUrgentKept; }

  std::vector<Entry> flows_;  // ordered by (priority, deadline, turn)
  std::uint64_t next_turn_ = 1;
  std::uint64_t total_left_ = 0;
  std::uint32_t since_background_ = 0;
  TimeNs urgent_at_ = -kUrgentKept;  // when foreground bytes were last sent
};

}  // namespace tent
