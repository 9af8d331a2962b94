// Stage: engine. One link as its session sees it: sequence numbers both ways, what is in flight and
// unacknowledged, and the estimate that learns from it. Pure; one thread. Owned by Session.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "core/node.h"
#include "core/rail_estimate.h"
#include "core/scheduler.h"
#include "core/slicer.h"

namespace tent {

// A slice may be on two links at once: at the end of a flow its last slices also go to links that
// have nothing better to do. Each of the two then knows of the other.
enum class Twin : std::uint8_t {
  None,
  InFlight,  // the other one may arrive as well: should this one get lost, nothing is lost
  Arrived,   // the other one was acknowledged
  Lost       // the other one went down with its link; there is no third before both are fenced
};
constexpr bool is_alone(Twin twin) { return twin == Twin::None || twin == Twin::Lost; }

struct Unacked {  // a frame on its way
  std::uint64_t sequence = 0;
  FrameKind kind = FrameKind::Ping;
  std::uint64_t cost = 0;     // bytes on the link; 0: its acknowledgement may wait
  TransferId flow = 0;        // Slice
  SliceSpan span;             // Slice
  Twin twin = Twin::None;     // Slice
  LinkId lost_on = 0;         // Slice whose twin is lost: with this link
  bool counted = false;       // Slice: the report says that it went this way
  std::uint64_t control = 0;  // Control
  PostStamp stamp;
};

// An RDMA slice costs two messages, a read, and what wakes up both ends, however long it is.
constexpr std::uint64_t slice_bytes_min_of(RailKind kind) {
  return kind == RailKind::Rdma ? 256u << 10 : 0;
}

// Between GPUs even the longest frame takes some microseconds, and none of it passes through here.
constexpr std::uint64_t slice_bytes_max_of(const LinkInfo& info, const CoreSettings& settings) {
  const std::uint64_t most =
      info.kind == RailKind::CudaIpc
          ? std::min<std::uint64_t>(16 * settings.slice_bytes_max, kBodyBytesMax)
          : settings.slice_bytes_max;
  return info.slice_bytes_max == 0 ? most : std::min(info.slice_bytes_max, most);
}

class Link {
 public:
  Link(LinkId id, const LinkInfo& info, const CoreSettings& settings, TimeNs now)
      : id_(id),
        info_(info),
        ack_delay_(settings.ack_delay),
        estimate_(settings, info.rate_hint, slice_bytes_min_of(info.kind),
                  slice_bytes_max_of(info, settings)),
        last_heard_(now),
        last_said_(now) {}

  LinkId id() const { return id_; }
  const LinkInfo& info() const { return info_; }
  RailEstimate& estimate() { return estimate_; }
  const RailEstimate& estimate() const { return estimate_; }
  LinkView view() const;

  // Whether the acknowledgement of the next slice may wait for those that follow it: of four that
  // are half of what the window has room for, three may.
  bool may_ack_later() {
    const std::uint64_t group = estimate_.window() / (2 * estimate_.slice_bytes());
    if (++grouped_ < std::min<std::uint64_t>(group, kSlicesHeldMax)) return true;
    grouped_ = 0;
    return false;
  }
  // Outgoing: numbers the frame, remembers it, and stamps the acknowledgement we owe.
  void stamp(FrameHeader& header, Unacked unacked, TimeNs now);
  void stamp_ack(FrameHeader& header);
  // The peer consumed everything up to `sequence`; calls `each` for every frame that was in flight.
  // False when it acknowledges what was never sent.
  template <class Each>
  bool acked(std::uint64_t sequence, TimeNs now, Each each) {
    if (sequence >= next_sequence_) return false;
    while (!unacked_.empty() && unacked_.front().sequence <= sequence) {
      const Unacked frame = unacked_.front();
      unacked_.pop_front();
      if (frame.cost == 0) {
        estimate_.acked_aside(frame.stamp, now);
      } else {
        estimate_.acked(frame.stamp, frame.cost, now);
      }
      each(frame);
    }
    return true;
  }
  const std::deque<Unacked>& unacked() const { return unacked_; }
  std::deque<Unacked>& unacked() { return unacked_; }
  std::deque<Unacked> take_unacked();
  TimeNs due() const { return unacked_.empty() ? kNever : unacked_.front().stamp.due; }

  // Incoming: false when the number is not the next one.
  bool arrives(const FrameHeader& header, TimeNs now);
  void took(const FrameHeader& header, TimeNs now);  // a frame, all of it
  void places(std::uint64_t sequence) { placing_.push_back(sequence), ++arrived_; }  // a slice
  // Slices are in place in the order of their headers, though other frames may come in between.
  bool placed(const FrameHeader& header, TimeNs now) {
    if (placing_.empty() || placing_.front() != header.sequence) return false;
    placing_.pop_front();
    if ((header.flags & kAckLater) == 0) landed_ = header.sequence;
    ++slices_held_;
    if (ack_waits_until_ == kNever) ack_waits_until_ = now + ack_delay_;
    return true;
  }
  // Everything up to here is done with.
  std::uint64_t consumed() const { return placing_.empty() ? arrived_ : placing_.front() - 1; }
  bool owes_ack() const { return consumed() != ack_sent_; }
  // One that nobody waits for rides with the next frame, or goes when its time has come; those of
  // slices go together while we are `behind` the sender, who has a window of eight and more.
  bool must_ack(TimeNs now, bool behind) const {
    if (!owes_ack()) return false;
    return awaited_ > ack_sent_ || ack_waits_until_ <= now ||
           arrived_ - ack_sent_ >= kAcksHeldMax ||
           (landed_ > ack_sent_ && (!behind || slices_held_ >= kSlicesHeldMax));
  }
  TimeNs ack_due() const { return owes_ack() ? ack_waits_until_ : kNever; }
  TimeNs last_heard() const { return last_heard_; }
  // Since when nothing was carried, either way; kNever: there is something under way.
  TimeNs idle_since() const;
  void heard(TimeNs now) { last_heard_ = now; }
  TimeNs last_ping = 0;
  bool wants_ping = false;
  // Since when the frame with this number is overdue: the first to be overdue after a pause of the
  // whole process deserves a moment more than its due.
  TimeNs doubted_at = 0;
  std::uint64_t doubted_sequence = 0;

  LinkStats stats;  // counters only; the rest is filled in when asked

 private:
  static constexpr std::uint64_t kAcksHeldMax = 32;  // far below what the control stream may send
  static constexpr unsigned kSlicesHeldMax = 4;

  LinkId id_;
  LinkInfo info_;
  TimeNs ack_delay_;
  RailEstimate estimate_;
  std::uint64_t next_sequence_ = 1, arrived_ = 0, ack_sent_ = 0;
  std::uint64_t awaited_ = 0;  // the last frame that is done with and whose sender waits for that
  std::uint64_t grouped_ = 0;  // slices sent whose acknowledgement may wait for the next one's
  std::uint64_t landed_ = 0;   // the last slice in place whose sender waits for that
  unsigned slices_held_ = 0;   // ... of them, not acknowledged
  TimeNs ack_waits_until_ = kNever;
  std::deque<Unacked> unacked_;
  std::deque<std::uint64_t> placing_;  // slices whose header came and whose bytes are on the way
  TimeNs last_heard_, last_said_;
};

}  // namespace tent
