// Stage: engine. What went over each rail to each peer since the engine began; outlives the rail's
// links, so that counters never fall. Under the engine lock.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "core/node.h"

namespace tent {

struct Rail {
  PeerId peer = 0;
  std::string name;
  RailKind kind = RailKind::Tcp;
  std::uint64_t bytes_sent = 0, bytes_received = 0, slices_sent = 0, slices_received = 0;
  std::uint64_t retries = 0;  // slices that were lost with a link and sent again
  std::uint64_t fences = 0;   // links that the Node closed to be sure that nothing lands from them
  // Those that went down, and those that were closed because they carried nothing.
  std::uint64_t links_made = 0, links_lost = 0, links_rested = 0;
};
using RailRef = std::shared_ptr<Rail>;

class Rails {
 public:
  static constexpr std::size_t kRailsMax = 4096;

  // The rail of this name to the peer, made when it is new. When there are too many, those of peers
  // that are gone are dropped.
  RailRef open(PeerId peer, const std::string& name, RailKind kind, const Node& node) {
    if (rails_.size() >= kRailsMax) {
      std::erase_if(rails_, [&](const auto& entry) { return !node.alive(entry.first.first); });
    }
    RailRef& rail = rails_[{peer, name}];
    if (!rail) rail = std::make_shared<Rail>(Rail{.peer = peer, .name = name, .kind = kind});
    return rail;
  }
  const std::map<std::pair<PeerId, std::string>, RailRef>& all() const { return rails_; }

 private:
  std::map<std::pair<PeerId, std::string>, RailRef> rails_;
};

}  // namespace tent
