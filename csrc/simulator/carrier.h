// Stage: tests. The sending half of the simulated transports: queues what the Nodes post, asks them
// for the source at the moment the bytes leave, and tears what it sends into chunks.
// Owned by World; one thread. Asks the Ledger before every read of memory.
#pragma once

#include <utility>
#include <vector>

#include "simulator/network.h"

namespace tent::sim {

class Carrier {
 public:
  explicit Carrier(World& world) : world_(world) {}

  void post(std::uint32_t process, LinkId link, Frame frame);  // only queues
  void pump_posted();                                          // sends what fits
  void pump(Link& link, int end);
  // Plans the event for the next chunk that `sender` has under way.
  void plan_arrival(Link& link, int sender);

 private:
  bool send_chunk(Link& link, int end);
  void load(Link& link, int end, Parcel& parcel, Chunk& chunk);
  void spoil(Link& link, Pipe& pipe);
  void check_fenced(Link& link, int end, const FrameHeader& header);

  World& world_;
  std::vector<std::pair<Link*, int>> posted_;
  Pieces pieces_;
};

}  // namespace tent::sim
