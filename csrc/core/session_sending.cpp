// Stage: engine. Session, the sending half: control messages, slices for links with room, and the
// acknowledgements that are owed. See the header.
#include <algorithm>

#include "core/crc32c.h"
#include "core/session.h"

namespace tent {

namespace {
// The acknowledgement of a control message so small may wait, unless a send ends with it.
constexpr std::size_t kAsideBytesMax = 256;
}  // namespace

void Session::flush(TimeNs now) {
  wake_rails();
  if (links_.empty()) return;
  post_control(now);
  if (dialogue_.out.scheduler().any_left()) post_slices(now);
  if (!dialogue_.out.scheduler().any_left()) post_twins(now);
  post_acks(now);
}

void Session::post(Link& link, Frame frame, Unacked unacked, TimeNs now) {
  frame.header.eager_consumed = eager_consumed_said_ = dialogue_.eager_consumed();
  eager_said_by_ = kNever;
  if (frame.body) frame.header.body_bytes = std::uint32_t(frame.body->size());
  if (frame.header.kind == FrameKind::Ack) {
    link.stamp_ack(frame.header);
  } else {
    silence_.spoke(now);
    unacked.kind = frame.header.kind;
    link.stamp(frame.header, unacked, now);
  }
  host_.outbox.post(link.id(), std::move(frame));
}

void Session::post_control(TimeNs now) {
  while (const ControlStream::Entry* entry = control_.next()) {
    Frame frame;
    frame.header.kind = FrameKind::Control;
    frame.header.control = entry->number;
    frame.body = entry->body;
    Unacked unacked;
    unacked.control = entry->number;
    control_.sent(entry->number);
    if (!entry->ends && entry->body->size() <= kAsideBytesMax) frame.header.flags |= kAckLater;
    Link& link = *links_.quickest();
    if (Transfer* transfer = transfer_of(entry->flow)) {
      transfer->count(link.info().rail, transfer->report.bytes);
      if (transfer->request.priority == Priority::Foreground) dialogue_.out.scheduler().urgent(now);
    }
    post(link, std::move(frame), unacked, now);
  }
}

bool Session::may_carry(LinkId link, TransferId flow) {
  Outbound* outbound = dialogue_.out.find(flow);
  for (const auto& [known, can] : outbound->reach) {
    if (known == link) return can;
  }
  const bool can =
      host_.outbox.reaches(link, outbound->source, outbound->landing, outbound->view.rails);
  outbound->reach.emplace_back(link, can);
  return can;
}

void Session::post_slices(TimeNs now) {
  Scheduler& scheduler = dialogue_.out.scheduler();
  std::vector<LinkView> views;
  std::uint64_t windows = 0;
  for (const auto& [id, link] : links_.all()) {
    views.push_back(link->view());
    windows += link->estimate().window();
  }
  const auto may = [this](LinkId link, TransferId flow) { return may_carry(link, flow); };
  for (bool moved = true; moved && scheduler.any_left();) {
    moved = false;
    for (LinkView& view : views) {
      Link& link = *links_.find(view.link);
      if (!link.estimate().has_room()) continue;
      const TransferId flow = scheduler.next(view, views, may, now);
      if (flow == 0) continue;
      Outbound& outbound = *dialogue_.out.find(flow);
      const std::uint64_t wanted =
          scheduler.slice_bytes(view, outbound.view.priority, host_.settings.slice_bytes_min, now);
      const SliceSpan span = dialogue_.out.cut(outbound, wanted);
      // What waits for company must have some. At the end of it all there is none; and the
      // background is bounded by its queue, and might send no more before it is acknowledged.
      const bool exactly =
          scheduler.left() < windows || outbound.view.priority == Priority::Background;
      const bool later = !exactly && link.may_ack_later();
      post_slice(link, outbound, span, later ? kAckLater : 0, Twin::None, now);
      view = link.view();
      moved = true;
    }
  }
}

void Session::post_slice(Link& link, Outbound& outbound, SliceSpan span, std::uint8_t flags,
                         Twin twin, TimeNs now) {
  auto& opened = outbound.opened;
  if (outbound.opening && std::find(opened.begin(), opened.end(), link.id()) == opened.end()) {
    opened.push_back(link.id());
    Frame open;
    open.header.kind = FrameKind::Open;
    open.header.flow = outbound.flow;
    open.header.flags |= kAckLater;  // the slice's serves it, too
    open.body = outbound.opening;
    post(link, std::move(open), {}, now);
  }
  Frame frame;
  Unacked unacked;
  unacked.flow = outbound.flow;
  unacked.span = span;
  unacked.twin = twin;
  unacked.counted = true;
  frame.header.kind = FrameKind::Slice;
  frame.header.flags = flags;
  frame.header.flow = outbound.flow;
  frame.header.offset = unacked.span.offset;
  frame.header.body_bytes = std::uint32_t(unacked.span.bytes);
  if (host_.settings.checksum && outbound.source.device() == kHost) {
    Pieces pieces;
    outbound.source.pieces(unacked.span.offset, unacked.span.bytes, pieces);
    frame.header.flags |= kHasCrc;
    frame.header.crc = crc32c(pieces);
  }
  ++link.stats.slices_sent;
  if (Transfer* transfer = transfer_of(outbound.flow)) {
    transfer->count(link.info().rail, unacked.span.bytes);
  }
  post(link, std::move(frame), unacked, now);
}

void Session::post_acks(TimeNs now) {
  for (const auto& [id, link] : links_.all()) {
    Frame frame;
    if (link->wants_ping) {
      link->wants_ping = false;
      link->last_ping = now;
      frame.header.kind = FrameKind::Ping;
      post(*link, std::move(frame), {}, now);
    } else if (link->must_ack(now, host_.outbox.behind(id))) {
      post(*link, std::move(frame), {}, now);
    }
  }
  const std::uint64_t unsaid = dialogue_.eager_consumed() - eager_consumed_said_;
  if (unsaid == 0) return;
  eager_said_by_ = std::min(eager_said_by_, now + host_.settings.ack_delay);
  if (now >= eager_said_by_ || unsaid >= host_.settings.eager_bytes_max / 4) {
    post(*links_.quickest(), {}, {}, now);
  }
}

}  // namespace tent
