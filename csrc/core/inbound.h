// Stage: engine. The flows that come in from one peer: where their bytes go, which have landed, and
// which flows are over for good. Counts distinct bytes; nothing else decides that a flow is
// complete. Pure; one thread. Owned by Session.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/interval_set.h"
#include "core/layout.h"
#include "core/types.h"
#include "core/wire.h"

namespace tent {

struct Inbound {
  TransferId flow = 0;               // the peer's id
  TransferId transfer = 0;           // our receive or read; 0: a write by the peer
  SegmentId segment = 0;             // of a write
  std::vector<std::int64_t> blocks;  // of a write into a cache: for revocation
  bool has_note = false;
  std::string note;
  Layout destination;
  IntervalSet landed;
  std::uint64_t counted = 0;

  bool complete() const { return counted >= destination.bytes(); }
};

class InboundFlows {
 public:
  // Null when the flow is over or never was.
  Inbound* find(TransferId flow);
  bool over(TransferId flow) const { return over_.contains(flow, flow + 1); }
  Inbound& open(Inbound inbound);
  // The flow is over, however it ended: nothing of it lands after the return.
  void forget(TransferId flow);
  // Whether such a slice may come: inside the flow, or of one that is over and will be dropped.
  bool fits(TransferId flow, std::uint64_t offset, std::uint64_t length) const;
  // The memory of [offset, offset + length); false when it must not be written (any more).
  bool landing(TransferId flow, std::uint64_t offset, std::uint64_t length, Pieces& out);
  // A whole slice has come, and is being copied into place: how many of its bytes are news. A
  // repeat finds no landing from here on.
  std::uint64_t arrived(TransferId flow, std::uint64_t offset, std::uint64_t length);
  // Bytes that had arrived are in place: returns their flow, null when it is over.
  Inbound* placed(TransferId flow, std::uint64_t fresh);
  // A whole slice is in place: returns its flow when that is news, else null.
  Inbound* landed(TransferId flow, std::uint64_t offset, std::uint64_t length);
  std::vector<TransferId> into_segment(SegmentId segment,
                                       const std::vector<std::int64_t>* blocks) const;
  std::size_t size() const { return flows_.size(); }

 private:
  std::unordered_map<TransferId, Inbound> flows_;
  IntervalSet over_;
};

}  // namespace tent
