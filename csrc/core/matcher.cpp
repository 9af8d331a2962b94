// Stage: engine. See the header.
#include "core/matcher.h"

#include <algorithm>

namespace tent {

std::optional<Offer> Matcher::post(MatchKey key, PeerId from, TransferId receive) {
  Queue& queue = queues_[key];
  const auto it = std::find_if(queue.offers.begin(), queue.offers.end(), [&](const Offer& offer) {
    return from == kAnyPeer || offer.peer == from;
  });
  if (it == queue.offers.end()) {
    queue.receives.push_back({from, receive});
    posted_.emplace(receive, key);
    return std::nullopt;
  }
  Offer offer = std::move(*it);
  queue.offers.erase(it);
  drop_if_empty(key);
  return offer;
}

std::optional<TransferId> Matcher::offer(MatchKey key, Offer& offer) {
  Queue& queue = queues_[key];
  const auto it =
      std::find_if(queue.receives.begin(), queue.receives.end(), [&](const Waiting& waiting) {
        return waiting.from == kAnyPeer || waiting.from == offer.peer;
      });
  if (it == queue.receives.end()) {
    queue.offers.push_back(std::move(offer));
    return std::nullopt;
  }
  const TransferId receive = it->receive;
  queue.receives.erase(it);
  posted_.erase(receive);
  drop_if_empty(key);
  return receive;
}

bool Matcher::cancel_receive(TransferId receive) {
  const auto found = posted_.find(receive);
  if (found == posted_.end()) return false;
  const MatchKey key = found->second;
  queues_[key].receives.remove_if([&](const Waiting& w) { return w.receive == receive; });
  posted_.erase(found);
  drop_if_empty(key);
  return true;
}

std::optional<std::uint64_t> Matcher::cancel_offer(PeerId peer, TransferId flow) {
  for (auto& [key, queue] : queues_) {
    const auto it = std::find_if(queue.offers.begin(), queue.offers.end(), [&](const Offer& offer) {
      return offer.peer == peer && offer.flow == flow;
    });
    if (it == queue.offers.end()) continue;
    const std::uint64_t bytes = it->payload.size();
    queue.offers.erase(it);
    drop_if_empty(MatchKey(key));
    return bytes;
  }
  return std::nullopt;
}

std::vector<TransferId> Matcher::lose(PeerId peer, bool keep_inline) {
  std::vector<TransferId> receives;
  for (auto it = queues_.begin(); it != queues_.end();) {
    Queue& queue = it->second;
    bool gap = !keep_inline;  // behind an offer that is lost, a later one must not take its place
    queue.offers.remove_if([&](const Offer& offer) {
      gap |= offer.peer == peer && !offer.is_inline;
      return offer.peer == peer && gap;
    });
    queue.receives.remove_if([&](const Waiting& waiting) {
      if (waiting.from != peer) return false;
      receives.push_back(waiting.receive);
      posted_.erase(waiting.receive);
      return true;
    });
    it = queue.offers.empty() && queue.receives.empty() ? queues_.erase(it) : std::next(it);
  }
  return receives;
}

void Matcher::drop_if_empty(MatchKey key) {
  const auto it = queues_.find(key);
  if (it != queues_.end() && it->second.offers.empty() && it->second.receives.empty()) {
    queues_.erase(it);
  }
}

}  // namespace tent
