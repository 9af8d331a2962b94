// Stage: engine. See the header.
#include "core/link.h"

#include <algorithm>
#include <utility>

namespace tent {

LinkView Link::view() const {
  return {id_,
          info_.kind,
          estimate_.steady_rate(),
          estimate_.base_latency(),
          estimate_.in_flight(),
          estimate_.slice_bytes(),
          0};
}

void Link::stamp(FrameHeader& header, Unacked unacked, TimeNs now) {
  header.sequence = unacked.sequence = next_sequence_++;
  const bool later = (header.flags & kAckLater) != 0;
  if (later && header.kind != FrameKind::Slice) {
    unacked.stamp = estimate_.posted_aside(now);
  } else {
    unacked.cost = sizeof(FrameHeader) + header.body_bytes;
    unacked.stamp = estimate_.posted(unacked.cost, now, later);
  }
  unacked_.push_back(std::move(unacked));
  stamp_ack(header);
  last_said_ = now;
}

TimeNs Link::idle_since() const {
  if (!unacked_.empty() || !placing_.empty() || owes_ack()) return kNever;
  return std::max(last_heard_, last_said_);
}

void Link::stamp_ack(FrameHeader& header) {
  header.ack = ack_sent_ = consumed();
  ack_waits_until_ = kNever;
  slices_held_ = 0;
}

void Link::took(const FrameHeader& header, TimeNs now) {
  ++arrived_;
  if ((header.flags & kAckLater) == 0) {
    awaited_ = arrived_;
  } else if (ack_waits_until_ == kNever) {
    ack_waits_until_ = now + ack_delay_;
  }
}

std::deque<Unacked> Link::take_unacked() {
  for (const Unacked& frame : unacked_) estimate_.lost(frame.cost);
  return std::exchange(unacked_, {});
}

bool Link::arrives(const FrameHeader& header, TimeNs now) {
  last_heard_ = now;
  return header.kind == FrameKind::Ack || header.sequence == arrived_ + 1;
}

}  // namespace tent
