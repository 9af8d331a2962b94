// Stage: tests. The receiving half of the simulated transports: hands frames to the Node, asks it
// for every chunk of a slice where it goes, as the real transports do, and does the writing itself.
// Owned by World; one thread. Asks the Ledger before every write to memory.
#pragma once

#include <cstdint>

#include "simulator/network.h"

namespace tent::sim {

class Process;

class Reader {
 public:
  explicit Reader(World& world) : world_(world) {}

  void arrive(Link& link, int sender);  // an Arrive event
  void read_all(Link& link, int end);   // all that waits in the receiver's kernel

 private:
  void read_chunk(Link& link, int end);
  void read_frame(Link& link, int end, Process& process);
  void read_slice(Link& link, int end, Process& process, const Chunk& chunk);
  void land(Link& link, int end, Process& process, const Chunk& chunk);
  void placed(Link& link, int end, Process& process, const Chunk& chunk);
  void write(Link& link, int end, const Chunk& chunk);
  // False: the link is closed over it.
  bool judge(Link& link, int end, Mischief mischief, bool accepted, bool verifiable);

  World& world_;
  Pieces where_, from_;
  std::vector<std::uint8_t> bytes_;
};

}  // namespace tent::sim
