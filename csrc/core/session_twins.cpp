// Stage: engine. Session, the end of a flow: when nothing is left to hand out, links with nothing
// better to do also carry slices that would come late on another link, because its rate was thought
// higher than it is or it has just died. Whichever comes first counts; the receiver drops the other
// one as a repeat, or as a slice of a flow that is over.
// What always holds: neither of the two links writes into memory by itself, so that no byte of a
// flow that is over can land; the report counts a slice for one rail.
#include "core/session.h"

namespace tent {

void Session::post_twins(TimeNs now) {
  // With checksums a damaged copy would spoil the place where the other one is being written, which
  // would then be refused as well, and its link closed.
  if (links_.size() < 2 || host_.settings.checksum) return;
  for (bool moved = true; moved;) {
    moved = false;
    for (const auto& [id, link] : links_.all()) {
      if (link->info().places_by_itself || !link->estimate().has_room()) continue;
      moved |= post_twin(*link, now);
    }
  }
}

// Doubles, on `link`, the slice elsewhere that is the last to be expected.
bool Session::post_twin(Link& link, TimeNs now) {
  const LinkView mine = link.view();
  Other latest;
  double latest_end = 0;
  for (const auto& [id, other] : links_.all()) {
    if (id == link.id() || other->info().places_by_itself) continue;
    const LinkView view = other->view();
    std::uint64_t ahead = view.in_flight;
    auto& frames = other->unacked();
    for (auto frame = frames.rbegin(); frame != frames.rend(); ahead -= frame++->cost) {
      if (frame->kind != FrameKind::Slice || frame->twin != Twin::None) continue;
      const Outbound* outbound = dialogue_.out.find(frame->flow);
      if (outbound == nullptr || !outbound->ready || !may_carry(link.id(), frame->flow)) continue;
      const double end = double(ahead) / view.rate + double(view.base_latency);
      if (end <= latest_end || !worth_doubling(mine, frame->span.bytes, view, ahead)) break;
      latest_end = end;
      latest = {other.get(), &*frame};
      break;
    }
  }
  if (latest.frame == nullptr) return false;
  Outbound& outbound = *dialogue_.out.find(latest.frame->flow);
  if (Transfer* transfer = transfer_of(outbound.flow)) {
    transfer->uncount(latest.link->info().rail, latest.frame->span.bytes);
    ++transfer->report.twins;
  }
  latest.frame->twin = Twin::InFlight;
  latest.frame->counted = false;
  ++host_.totals.twins;
  post_slice(link, outbound, latest.frame->span, 0, Twin::InFlight, now);
  return true;
}

Session::Other Session::twin_of(const Link& link, const Unacked& frame) {
  for (const auto& [id, other] : links_.all()) {
    if (id == link.id()) continue;
    for (Unacked& one : other->unacked()) {
      const bool same = one.kind == FrameKind::Slice && one.flow == frame.flow &&
                        one.span.offset == frame.span.offset;
      if (same && one.twin == Twin::InFlight) return {other.get(), &one};
    }
  }
  return {};
}

void Session::twin_arrived(Link& link, const Unacked& frame) {
  const Other other = twin_of(link, frame);
  if (other.frame == nullptr) return;
  other.frame->twin = Twin::Arrived;
  Transfer* transfer = transfer_of(frame.flow);
  if (transfer == nullptr || !other.frame->counted) return;
  transfer->uncount(other.link->info().rail, frame.span.bytes);
  transfer->count(link.info().rail, frame.span.bytes);
}

void Session::twin_lost(const Link& link, const Unacked& frame) {
  if (frame.twin != Twin::InFlight) return;
  const Other other = twin_of(link, frame);
  if (other.frame == nullptr) return;
  other.frame->twin = Twin::Lost;
  other.frame->lost_on = link.id();
  Transfer* transfer = transfer_of(frame.flow);
  if (transfer == nullptr || other.frame->counted) return;
  other.frame->counted = true;
  transfer->uncount(link.info().rail, frame.span.bytes);
  transfer->count(other.link->info().rail, frame.span.bytes);
}

}  // namespace tent
