// Stage: engine, pure part. Sends each call and each frame to the session it belongs to; owns what
// sessions share. See node.h.
#include "core/node.h"

#include <algorithm>
#include <utility>

#include "core/node_private.h"

namespace tent {

namespace {
// Flow ids carry our number of the peer, so that a transport can name a flow alone (dialogue.cpp).
PeerId peer_of_flow(TransferId flow) { return PeerId(flow >> 40 & 0x7fffff); }
}  // namespace

Node::Node(const CoreSettings& settings, Outbox& outbox)
    : p_(std::make_unique<Private>(settings, outbox)) {}
Node::~Node() = default;

// ---- calls ----

TransferId Node::next_id() { return p_->next_id++; }
Segments& Node::segments() { return p_->segments; }

void Node::submit(Request request, TimeNs now) {
  const TransferId id = request.id;
  const PeerId peer = request.peer;
  const RailKinds rails = request.rails;
  Transfer& transfer = p_->transfers.add(std::move(request), now);
  Session* session = p_->touch(peer);
  if (session != nullptr) {
    p_->interests.emplace(id, peer);
    session->interest(+1, now);
  }
  if (transfer.request.op == Request::Op::Recv) {
    p_->receive(transfer, now);
  } else if (session == nullptr) {
    return p_->fail(id, Code::PeerLost, p_->gone(peer), now);
  } else {
    session->dialogue().submit(transfer, now);
  }
  if (session != nullptr && (session->kinds() & rails) == 0) session->tick(now);
}

void Node::Private::receive(Transfer& transfer, TimeNs now) {
  const Request& request = transfer.request;
  const MatchKey key{request.context, request.tag};
  auto offer = matcher.post(key, request.peer, request.id);
  if (!offer) {
    if (request.peer == kAnyPeer || session(request.peer) != nullptr) return;
    matcher.cancel_receive(request.id);
    return fail(request.id, Code::PeerLost, gone(request.peer), now);
  }
  if (Session* from = touch(offer->peer)) return from->dialogue().accept(transfer, *offer, now);
  // The sender is gone but all its bytes are here.
  Session last({settings, watched, segments, matcher, transfers, totals}, offer->peer,
               names[offer->peer]);
  last.dialogue().accept(transfer, std::move(*offer), now);
}

void Node::cancel(TransferId id, Code code, TimeNs now) {
  Transfer* transfer = p_->transfers.find(id);
  if (transfer == nullptr) return;
  p_->stop(*transfer, code, now);
}

void Node::Private::stop(Transfer& transfer, Code code, TimeNs now) {
  const char* text = code == Code::Timeout ? "the transfer's timeout passed before it was complete"
                                           : "cancelled by the caller";
  stop(transfer, Status{code, text, ""}, now);
}

void Node::Private::stop(Transfer& transfer, Status why, TimeNs now) {
  const TransferId id = transfer.request.id;
  if (transfer.stage == Transfer::Stage::Posted) {
    matcher.cancel_receive(id);
    return transfers.end(id, std::move(why), now);
  }
  if (Session* with = session(transfer.report.peer)) {
    with->dialogue().cancel(transfer, std::move(why), now);
    with->flush(now);
  }
}

void Node::fail(TransferId id, Status why, TimeNs now) {
  if (Transfer* transfer = p_->transfers.find(id)) p_->stop(*transfer, std::move(why), now);
}

void Node::release(TransferId id, TimeNs now) {
  Transfer* transfer = p_->transfers.find(id);
  if (transfer == nullptr) return;
  transfer->request.held = false;
  if (transfer->stage != Transfer::Stage::Moving) return;
  if (Session* with = p_->touch(transfer->report.peer)) with->dialogue().release(*transfer, now);
}

bool Node::busy(SegmentId id) const {
  return std::any_of(p_->sessions.begin(), p_->sessions.end(), [&](const auto& session) {
    return session && session->dialogue().cancelling_reads_of(id);
  });
}

void Node::close_segment(SegmentId id, TimeNs now) {
  if (!p_->segments.remove(id)) return;
  for (const auto& session : p_->sessions) {
    if (!session) continue;
    session->dialogue().drop_segment(id, nullptr, "the owner closed the segment", now);
    session->flush(now);
  }
}

void Node::revoke(SegmentId id, const std::vector<std::int64_t>& blocks, TimeNs now) {
  p_->segments.revoke(id, blocks);
  for (const auto& session : p_->sessions) {
    if (!session) continue;
    session->dialogue().drop_segment(id, &blocks, "the owner revoked the blocks", now);
    session->flush(now);
  }
}

// ---- what the transports bring ----

bool Node::frame(LinkId link, const FrameHeader& header, std::span<const std::uint8_t> body,
                 TimeNs now) {
  Session* session = p_->session_of(link);
  return session == nullptr || session->frame(link, header, body, now);
}

bool Node::slice(LinkId link, const FrameHeader& header, TimeNs now) {
  Session* session = p_->session_of(link);
  return session == nullptr || session->slice(link, header, now);
}

bool Node::landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
                   Pieces& out) {
  Session* session = p_->session_of(link);
  return session != nullptr && session->landing(link, flow, offset, length, out);
}

bool Node::landed(LinkId link, const FrameHeader& header, TimeNs now) {
  Session* session = p_->session_of(link);
  return session == nullptr || session->landed(link, header, now);
}

bool Node::source(TransferId flow, std::uint64_t offset, std::uint64_t length, Pieces& out) const {
  Session* session = p_->session(peer_of_flow(flow));
  const Outbound* outbound = session ? session->dialogue().out.find(flow) : nullptr;
  if (outbound == nullptr) return false;
  outbound->source.pieces(offset, length, out);
  return true;
}

// ---- through host memory ----

Origin Node::source_origin(TransferId flow) const {
  Session* session = p_->session(peer_of_flow(flow));
  const Outbound* outbound = session ? session->dialogue().out.find(flow) : nullptr;
  if (outbound == nullptr) return {};
  return {outbound->source.device(), outbound->transfer, outbound->segment};
}

Origin Node::landing_origin(PeerId peer, TransferId flow) const {
  Session* session = p_->session(peer);
  const Inbound* inbound = session ? session->dialogue().in.find(flow) : nullptr;
  if (inbound == nullptr) return {};
  return {inbound->destination.device(), inbound->transfer, inbound->segment};
}

bool Node::arrived(LinkId link, const FrameHeader& header, const Pieces& memory,
                   std::uint64_t& fresh, TimeNs now) {
  fresh = 0;
  Session* session = p_->session_of(link);
  return session == nullptr || session->arrived(link, header, memory, fresh, now);
}

void Node::placed(PeerId peer, TransferId flow, const std::string& rail, std::uint64_t fresh,
                  const Status& status, TimeNs now) {
  Session* session = p_->touch(peer);
  if (session != nullptr) session->dialogue().on_placed(rail, flow, fresh, status, now);
}

void Node::source_failed(TransferId flow, const Status& status, TimeNs now) {
  Session* session = p_->touch(peer_of_flow(flow));
  if (session != nullptr) session->dialogue().source_failed(flow, status, now);
}

void Node::let_go(PeerId peer, TransferId flow) {
  if (Session* session = p_->touch(peer)) session->dialogue().say_owed(flow);
}

void Node::ask_again() {
  for (PeerId peer = 0; peer < p_->sessions.size(); ++peer) {
    if (Session* session = p_->touch(peer)) session->ask_again();
  }
}

// ---- time and output ----

void Node::flush(TimeNs now) {
  while (!p_->to_flush.empty()) {
    const PeerId peer = p_->to_flush.back();
    p_->to_flush.pop_back();
    p_->touched[peer] = false;
    Session* session = p_->session(peer);
    if (session == nullptr) continue;
    session->flush(now);
    if (session->peer_closed()) {
      lose_peer(peer, {Code::PeerLost, name(peer) + " closed its engine", ""}, now);
    }
  }
}

TimeNs Node::tick(TimeNs now) {
  for (TransferId id : p_->transfers.due(now)) p_->end_wait(id, now);
  TimeNs next = p_->transfers.next_due();
  for (PeerId peer = 0; peer < p_->sessions.size(); ++peer) {
    Session* session = p_->session(peer);
    if (session == nullptr) continue;
    next = std::min(next, session->tick(now));
    if (session->silent_for(now) >= p_->settings.peer_timeout) {
      lose_peer(peer, {Code::PeerLost, name(peer) + " was silent for the whole peer_timeout", ""},
                now);
    }
  }
  return next;
}

void Node::Private::end_wait(TransferId id, TimeNs now) {
  Transfer* transfer = transfers.find(id);
  if (transfer == nullptr) return;
  if (transfer->stage == Transfer::Stage::Cancelling) {
    if (transfer->patience > now) return;
    if (Session* with = session(transfer->report.peer)) {
      with->dialogue().patience_ended(*transfer, now);
    }
  } else if (transfer->request.expires <= now) {
    stop(*transfer, Code::Timeout, now);
  }
}

NodeStats Node::stats() const {
  NodeStats stats = p_->totals;
  stats.transfers_done = p_->transfers.done;
  stats.transfers_failed = p_->transfers.failed;
  stats.outstanding = p_->transfers.size();
  for (const auto& session : p_->sessions) {
    if (!session) continue;
    stats.flows_in += session->dialogue().in.size();
    stats.flows_out += session->dialogue().out.size();
    session->add_stats(stats);
  }
  return stats;
}

}  // namespace tent
