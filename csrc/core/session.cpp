// Stage: engine. See session.h.
#include "core/session.h"

#include <algorithm>
#include <utility>

#include "core/crc32c.h"
#include "core/sabotage.h"

namespace tent {

Session::Session(SessionHost host, PeerId peer, std::string name)
    : host_(host),
      peer_(peer),
      name_(std::move(name)),
      links_(host.settings),
      dialogue_(host, peer, *this) {}

void Session::interest(int change, TimeNs now) {
  if (interest_ == 0 && change > 0) silence_.wanted(now);
  interest_ += change;
}

bool Session::waits() const {
  return interest_ > 0 || dialogue_.out.size() != 0 || dialogue_.in.size() != 0;
}

TimeNs Session::silent_for(TimeNs now) const {
  return waits() ? silence_.lasts(now, host_.settings.keepalive) : 0;
}

void Session::say_bye() {
  Message bye;
  bye.kind = MessageKind::Bye;
  say(bye, 0, false);
}

void Session::say(const Message& message, TransferId flow, bool ends) {
  control_.push(std::make_shared<const Body>(encode(message)), flow, ends);
}

void Session::unsay(TransferId flow) {
  Message cancel;
  cancel.kind = MessageKind::Cancel;
  cancel.id = flow;
  control_.replace(flow, std::make_shared<const Body>(encode(cancel)));
}

// ---- links and fences ----

std::vector<LinkId> Session::links() const {
  std::vector<LinkId> ids;
  for (const auto& [id, link] : links_.all()) ids.push_back(id);
  return ids;
}

void Session::link_up(LinkId id, const LinkInfo& info, TimeNs now) {
  silence_.heard(now);
  if (!links_.add(id, info, now)) {
    host_.outbox.close(id, {Code::Failed, "the peer closed it during the handshake", info.rail});
  }
}

void Session::ask_again() {
  dialogue_.out.each([](Outbound& outbound) { outbound.reach.clear(); });
}

Transfer* Session::transfer_of(TransferId flow) {
  const Outbound* outbound = dialogue_.out.find(flow);
  return outbound ? host_.transfers.find(outbound->transfer) : nullptr;
}

void Session::link_down(LinkId id, TimeNs now) {
  if (links_.find(id) == nullptr) return;
  std::vector<TransferId> flows;
  for (const Unacked& frame : links_.find(id)->unacked()) twin_lost(*links_.find(id), frame);
  const std::string rail = links_.find(id)->info().rail;
  for (const Unacked& frame : links_.remove(id)) {
    if (frame.kind == FrameKind::Control) {
      const ControlStream::Entry* entry = control_.lost(frame.control);
      Transfer* transfer = entry ? transfer_of(entry->flow) : nullptr;
      if (transfer != nullptr) transfer->uncount(rail, transfer->report.bytes);
    }
    if (frame.kind != FrameKind::Slice || !is_alone(frame.twin)) continue;
    host_.outbox.traced(
        {frame.flow, id, frame.span.offset, frame.span.bytes, frame.stamp.posted, now, false});
    Transfer* transfer = transfer_of(frame.flow);
    if (transfer == nullptr) continue;
    transfer->uncount(rail, frame.span.bytes);
    if (std::find(flows.begin(), flows.end(), frame.flow) != flows.end()) continue;
    flows.push_back(frame.flow);
    ++transfer->report.fences;
  }
  ask_again();  // another link may have left a flow to this one
  ++host_.totals.fences;
  if (links_.empty()) next_dial_ = now;  // the last one: do not wait for the turn of a dial
  Message fence;
  fence.kind = MessageKind::Fence;
  fence.id = id;
  say(fence, 0, false);
  if (sabotage::no_fence) link_is_fenced(id, now);
}

void Session::link_is_fenced(LinkId id, TimeNs) {
  for (const LostSlice& lost : links_.fenced(id)) {
    const Outbound* outbound = dialogue_.out.find(lost.flow);
    if (outbound == nullptr) continue;
    dialogue_.out.give_back(lost.flow, lost.span);
    ++host_.totals.retries;
    if (Transfer* transfer = host_.transfers.find(outbound->transfer)) ++transfer->report.retries;
  }
}

void Session::link_fenced_by_peer(LinkId id, TimeNs now) {
  if (const Link* link = links_.find(id)) {
    host_.outbox.close(id, {Code::Failed, "the peer closed it", link->info().rail});
    link_down(id, now);
  } else {
    links_.refuse_later(id);
  }
  link_is_fenced(id, now);  // the peer receives nothing from it since before it said so
  Message fenced;
  fenced.kind = MessageKind::Fenced;
  fenced.id = id;
  say(fenced, 0, false);
}

void Session::suspect(LinkId id, const std::string& why, TimeNs now) {
  const Link* link = links_.find(id);
  if (link == nullptr) return;
  ++host_.totals.suspects;
  host_.outbox.close(id, {Code::Failed, why, link->info().rail});
  link_down(id, now);
}

void Session::stop_placing(TransferId flow, TimeNs now) {
  for (LinkId id : links()) {
    if (links_.find(id)->info().places_by_itself && host_.outbox.placing(id, flow)) {
      suspect(id, "a transfer was stopped while the link wrote its bytes", now);
    }
  }
}

void Session::cut_off(const std::string& why, TimeNs now) {
  for (LinkId id : links()) suspect(id, why, now);
}

void Session::close_links(const Status& why) {
  for (LinkId id : links()) host_.outbox.close(id, why);
  links_.clear();
}

// ---- receiving ----

bool Session::heard(Link& link, const FrameHeader& header, TimeNs now) {
  if (!link.arrives(header, now)) return false;
  silence_.heard(now);
  dialogue_.peer_took(header.eager_consumed);
  return true;
}

bool Session::frame(LinkId id, const FrameHeader& header, std::span<const std::uint8_t> body,
                    TimeNs now) {
  Link* link = links_.find(id);
  if (link == nullptr) return true;  // closed meanwhile
  if (!heard(*link, header, now)) return false;
  if (header.kind != FrameKind::Ack) link->took(header, now);
  if (header.kind == FrameKind::Open) {
    Opening opening;
    if (!decode(body, opening) || !dialogue_.on_open(header.flow, std::move(opening), now)) {
      return false;
    }
  }
  // The message first, what it acknowledges after: a refusal must not come after a success.
  if (header.kind == FrameKind::Control && !on_control(header, body, now)) return false;
  link = links_.find(id);
  return link == nullptr ||
         link->acked(header.ack, now, [&](const Unacked& sent) { on_acked(*link, sent, now); });
}

bool Session::on_control(const FrameHeader& header, std::span<const std::uint8_t> body,
                         TimeNs now) {
  Message message;
  if (!decode(body, message)) return false;
  if (control_.in_order(header.control)) {  // the usual case: nothing is stored
    control_.skip();
    dialogue_.on_message(std::move(message), now);
    return true;
  }
  if (!control_.arrived(header.control, body)) return false;
  Body next;
  while (control_.take(next)) {
    if (!decode(next, message)) return false;
    dialogue_.on_message(std::move(message), now);
  }
  return true;
}

bool Session::slice(LinkId id, const FrameHeader& header, TimeNs now) {
  Link* link = links_.find(id);
  if (link == nullptr) return true;
  if (!heard(*link, header, now)) return false;
  if (!dialogue_.in.fits(header.flow, header.offset, header.body_bytes)) return false;
  link->places(header.sequence);
  return link->acked(header.ack, now, [&](const Unacked& sent) { on_acked(*link, sent, now); });
}

bool Session::landing(LinkId id, TransferId flow, std::uint64_t offset, std::uint64_t length,
                      Pieces& out) {
  return links_.find(id) != nullptr && dialogue_.in.landing(flow, offset, length, out);
}

bool Session::landed(LinkId id, const FrameHeader& header, TimeNs now) {
  Link* link = links_.find(id);
  if (link == nullptr) return true;
  if (!link->placed(header, now)) return false;
  const std::uint64_t bytes = header.body_bytes;
  if ((header.flags & kHasCrc) != 0) {
    Pieces pieces;
    if (dialogue_.in.landing(header.flow, header.offset, bytes, pieces) &&
        crc32c(pieces) != header.crc) {
      return false;
    }
  }
  took(*link, bytes, now);
  dialogue_.on_landed(link->info().rail, header.flow, header.offset, bytes, now);
  return true;
}

bool Session::arrived(LinkId id, const FrameHeader& header, const Pieces& memory,
                      std::uint64_t& fresh, TimeNs now) {
  Link* link = links_.find(id);
  if (link == nullptr) return true;
  if (!link->placed(header, now)) return false;
  if ((header.flags & kHasCrc) != 0 && crc32c(memory) != header.crc) return false;
  took(*link, header.body_bytes, now);
  fresh = dialogue_.in.arrived(header.flow, header.offset, header.body_bytes);
  return true;
}

void Session::took(Link& link, std::uint64_t bytes, TimeNs now) {
  silence_.heard(now);
  link.heard(now);
  ++link.stats.slices_received;
  link.stats.bytes_received += bytes;
}

void Session::on_acked(Link& link, const Unacked& frame, TimeNs now) {
  if (frame.kind == FrameKind::Control) {
    const auto entry = control_.acked(frame.control);
    if (entry && entry->ends) dialogue_.finish(entry->flow, {}, now);
  }
  if (frame.kind != FrameKind::Slice) return;
  link.stats.bytes_sent += frame.span.bytes;
  if (frame.twin == Twin::Arrived) return;  // its bytes came before, another way
  if (frame.twin == Twin::InFlight) twin_arrived(link, frame);
  host_.outbox.traced(
      {frame.flow, link.id(), frame.span.offset, frame.span.bytes, frame.stamp.posted, now, true});
}

}  // namespace tent
