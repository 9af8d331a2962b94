// Stage: slicer. The flows that go out to one peer: our sends and writes, and our answers to its
// reads. Holds what is left to send of each; the scheduler says whose turn it is. Pure; one thread.
// Owned by Session.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/layout.h"
#include "core/scheduler.h"
#include "core/slicer.h"
#include "core/types.h"
#include "core/wire.h"

namespace tent {

struct Outbound {
  TransferId flow = 0;
  TransferId transfer = 0;  // ours; 0 for an answer to a read
  TransferId request = 0;   // the reader's id, of an answer to a read
  SegmentId segment = 0;    // that an answer reads from
  std::vector<std::int64_t> blocks;
  Layout source;
  Device landing = kHost;  // of the receiver, as it counts its GPUs
  Slicer slicer;
  FlowView view;
  bool ready = false;                          // may be sliced (a send waits for Accept)
  bool held = false;                           // its source may not be read yet
  bool wanted = false;                         // and was to be sliced meanwhile
  bool cancelling = false;                     // waits for Cancelled
  TimeNs patience = kNever;                    // of an answer that is being cancelled
  std::shared_ptr<const Body> opening;         // null: the receiver knows where it goes (send)
  std::vector<LinkId> opened;                  // links that carried the opening
  std::vector<std::pair<LinkId, bool>> reach;  // what Outbox::reaches said
};

class OutboundFlows {
 public:
  Outbound& add(Outbound outbound);
  Outbound* find(TransferId flow);
  const Outbound* find(TransferId flow) const;
  void start(Outbound& outbound);  // its slices may go, once it is not held
  void release(Outbound& outbound);
  void stop(Outbound& outbound);  // no more slices
  void drop(TransferId flow);
  SliceSpan cut(Outbound& outbound, std::uint64_t wanted);
  void give_back(TransferId flow, SliceSpan span);
  Outbound* by_request(TransferId request);
  std::vector<TransferId> from_segment(SegmentId segment,
                                       const std::vector<std::int64_t>* blocks) const;
  // The rails that are allowed to flows which wait to be sliced, but which no link can carry.
  RailKinds missing_rails(const std::function<bool(const Outbound&)>& carried) const;
  template <class Each>
  void each(Each fn) {
    for (auto& [flow, outbound] : flows_) fn(outbound);
  }
  Scheduler& scheduler() { return scheduler_; }
  std::size_t size() const { return flows_.size(); }

 private:
  std::unordered_map<TransferId, Outbound> flows_;
  Scheduler scheduler_;
};

}  // namespace tent
