// Stage: engine, pure part. Sends each call and each frame to the session it belongs to; owns what
// sessions share. See node.h.
#include "core/node.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "core/session.h"

namespace tent {

namespace {
// Flow ids carry our number of the peer, so that a transport can name a flow alone (dialogue.cpp).
PeerId peer_of_flow(TransferId flow) { return PeerId(flow >> 40 & 0x7fffff); }
}  // namespace

struct Node::Private {
  Private(const CoreSettings& given, Outbox& out)
      : settings(given), outbox(out), watched(out, *this), transfers(watched) {}

  // Sees every transfer end, to keep the sessions' interest right.
  struct Watched final : Outbox {
    Watched(Outbox& next, Private& owner) : next(next), owner(owner) {}
    void post(LinkId link, Frame frame) override { next.post(link, std::move(frame)); }
    void close(LinkId link, const Status& why) override {
      owner.owners.erase(link);
      next.close(link, why);
    }
    void done(Report report) override {
      if (Session* session = owner.interested(report.id)) session->interest(-1, report.ended);
      owner.interests.erase(report.id);
      next.done(std::move(report));
    }
    void dial(PeerId peer, RailKinds rails) override { next.dial(peer, rails); }
    void peer_lost(PeerId peer, const Status& why) override { next.peer_lost(peer, why); }
    void noted(SegmentId segment) override { next.noted(segment); }
    void traced(const SliceEvent& event) override { next.traced(event); }
    bool reaches(LinkId link, const Layout& source, RailKinds allowed) override {
      return next.reaches(link, source, allowed);
    }
    bool placing(LinkId link, TransferId flow) override { return next.placing(link, flow); }
    bool quiet(PeerId peer) override { return next.quiet(peer); }
    void place(PeerId peer, TransferId flow, const Layout& to, const Body& bytes) override {
      next.place(peer, flow, to, bytes);
    }
    bool copying_in(PeerId peer, TransferId flow) const override {
      return next.copying_in(peer, flow);
    }
    Outbox& next;
    Private& owner;
  };

  Session* session(PeerId peer) { return peer < sessions.size() ? sessions[peer].get() : nullptr; }
  std::string gone(PeerId peer) const {
    return peer < names.size() && closed.contains(peer) ? names[peer] + " closed its engine"
                                                        : "the peer is gone";
  }
  // The same, and its output is looked at by the next flush.
  Session* touch(PeerId peer) {
    Session* found = session(peer);
    if (found != nullptr && !touched[peer]) {
      touched[peer] = true;
      to_flush.push_back(peer);
    }
    return found;
  }
  Session* session_of(LinkId link) {
    const auto found = owners.find(link);
    return found == owners.end() ? nullptr : touch(found->second);
  }
  Session* interested(TransferId id) {
    const auto found = interests.find(id);
    return found == interests.end() ? nullptr : session(found->second);
  }
  void fail(TransferId id, Code code, std::string text, TimeNs now) {
    transfers.end(id, {code, std::move(text), ""}, now);
  }
  void receive(Transfer& transfer, TimeNs now);
  void stop(Transfer& transfer, Code code, TimeNs now);
  void stop(Transfer& transfer, Status why, TimeNs now);
  void end_wait(TransferId id, TimeNs now);

  CoreSettings settings;
  Outbox& outbox;
  Watched watched;
  TransferTable transfers;
  Segments segments;
  Matcher matcher;
  NodeStats totals;
  std::vector<std::unique_ptr<Session>> sessions;  // by PeerId; null once lost
  std::vector<std::string> names;
  std::unordered_set<PeerId> closed;  // of those that are lost
  std::vector<PeerId> to_flush;       // sessions that were called since the last flush
  std::vector<bool> touched;          // by PeerId: whether it is among them
  std::unordered_map<LinkId, PeerId> owners;
  std::unordered_map<TransferId, PeerId> interests;  // transfers that wait for one peer
  TransferId next_id = 1;
};

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

// ---- peers and links ----

PeerId Node::add_peer(const std::string& name) {
  const auto peer = PeerId(p_->sessions.size());
  p_->names.push_back(name);
  p_->touched.push_back(false);
  p_->sessions.push_back(std::make_unique<Session>(
      SessionHost{p_->settings, p_->watched, p_->segments, p_->matcher, p_->transfers, p_->totals},
      peer, name));
  return peer;
}

void Node::lose_peer(PeerId peer, const Status& why, TimeNs now) {
  if (p_->session(peer) == nullptr) return;
  const std::unique_ptr<Session> session = std::move(p_->sessions[peer]);
  session->close_links(why);  // first: nothing lands for a transfer that has ended
  const bool keep_inline = session->peer_closed();
  if (keep_inline) p_->closed.insert(peer);
  for (TransferId id : p_->matcher.lose(peer, keep_inline)) p_->transfers.end(id, why, now);
  for (TransferId id : p_->transfers.with_peer(peer)) {
    const Transfer* transfer = p_->transfers.find(id);
    const bool cancelling = transfer->stage == Transfer::Stage::Cancelling;
    p_->transfers.end(id, cancelling ? Status(transfer->ending) : why, now);
  }
  p_->outbox.peer_lost(peer, why);
}

void Node::say_bye(TimeNs now) {
  for (const auto& session : p_->sessions) {
    if (!session) continue;
    session->say_bye();
    session->flush(now);
  }
}

void Node::link_up(PeerId peer, LinkId link, const LinkInfo& info, TimeNs now) {
  Session* session = p_->session(peer);
  if (session == nullptr) {
    return p_->outbox.close(link, {Code::PeerLost, "the peer is gone", info.rail});
  }
  p_->owners[link] = peer;
  session->link_up(link, info, now);
  session->flush(now);
}

void Node::link_down(LinkId link, const Status&, TimeNs now) {
  Session* session = p_->session_of(link);
  p_->owners.erase(link);
  if (session == nullptr) return;
  session->link_down(link, now);
  session->flush(now);
}

bool Node::alive(PeerId peer) const { return p_->session(peer) != nullptr; }
bool Node::closed(PeerId peer) const { return p_->closed.contains(peer); }

const std::string& Node::name(PeerId peer) const {
  static const std::string nobody = "unknown";
  return peer < p_->names.size() ? p_->names[peer] : nobody;
}

void Node::no_rails(PeerId peer, RailKinds rails, const std::string& why, TimeNs now) {
  if (Session* session = p_->session(peer)) {
    session->dialogue().no_rails(session->kinds(), rails, why, now);
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
