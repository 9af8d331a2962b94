// Stage: engine, pure part. Node, peers and their links; see node.h.
#include <utility>

#include "core/node_private.h"

namespace tent {

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

bool Node::link_rested(LinkId link, TimeNs now) {
  Session* session = p_->session_of(link);
  p_->owners.erase(link);
  return session == nullptr || session->link_rested(link, now);
}

LinkId Node::longest_idle(const std::vector<LinkId>& among, TimeNs before) const {
  LinkId longest = 0;
  for (const LinkId link : among) {
    const auto owner = p_->owners.find(link);
    if (owner == p_->owners.end()) continue;
    const TimeNs since = p_->session(owner->second)->idle_since(link);
    if (since < before) before = since, longest = link;
  }
  return longest;
}

void Node::rest(LinkId link) {
  if (Session* session = p_->session_of(link)) session->rest(link);
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

}  // namespace tent
