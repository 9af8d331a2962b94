// Stage: engine, pure part. What a Node consists of. Included by node.cpp and node_links.cpp alone;
// one thread, as the Node. What always holds: a transfer that waits for one peer is counted in that
// peer's session until its end.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/node.h"
#include "core/session.h"

namespace tent {

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
    void rest(LinkId link) override {
      owner.owners.erase(link);
      next.rest(link);
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
    bool reaches(LinkId link, const Layout& source, Device landing, RailKinds allowed) override {
      return next.reaches(link, source, landing, allowed);
    }
    std::string never_reaches(LinkId link, const Layout& source, Device landing) override {
      return next.never_reaches(link, source, landing);
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

}  // namespace tent
