// Stage: engine. Pairs sends with receives: same context and tag, the right peer, in order of
// arrival. Holds receives that were posted early and offers that came early. Pure; one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <unordered_map>

#include "core/types.h"
#include "core/wire.h"

namespace tent {

struct Offer {
  PeerId peer = kAnyPeer;
  TransferId flow = 0;
  std::uint64_t bytes = 0;
  std::uint32_t meta = 0;
  bool is_inline = false;
  Body payload;
};

struct MatchKey {
  std::uint64_t context, tag;
  bool operator==(const MatchKey&) const = default;
};

class Matcher {
 public:
  // Takes the earliest offer that the receive fits, else remembers the receive.
  std::optional<Offer> post(MatchKey key, PeerId from, TransferId receive);
  // Takes the earliest receive that the offer fits, else remembers the offer (moved from then).
  std::optional<TransferId> offer(MatchKey key, Offer& offer);
  bool cancel_receive(TransferId receive);
  // The inline bytes that the forgotten offer held.
  std::optional<std::uint64_t> cancel_offer(PeerId peer, TransferId flow);
  // Forgets the offers of a peer and gives back the receives that named it. With `keep_inline`,
  // offers whose bytes are all here can still be received.
  std::vector<TransferId> lose(PeerId peer, bool keep_inline);

 private:
  struct Waiting {
    PeerId from;
    TransferId receive;
  };
  struct Hash {
    std::size_t operator()(const MatchKey& key) const {
      return std::hash<std::uint64_t>()(key.context * 0x9e3779b97f4a7c15u ^ key.tag);
    }
  };
  struct Queue {
    std::list<Waiting> receives;
    std::list<Offer> offers;
  };
  void drop_if_empty(MatchKey key);
  std::unordered_map<MatchKey, Queue, Hash> queues_;
  std::unordered_map<TransferId, MatchKey> posted_;
};

}  // namespace tent
