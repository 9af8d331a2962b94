// Stage: transport. Shared memory: slices are described in a ring, the receiver maps the sender's
// regions read-only and copies into the landing memory itself. No system call per slice.
// Called by the thread that holds the engine lock; nothing blocks.
// What always holds: only poll() copies, in bounded parts; a peer's region is never written to.
#pragma once

#include "transports/doorbell.h"
#include "transports/transport.h"

namespace tent {

class ShmTransport final : public Transport {
 public:
  // Throws std::system_error when the process has no descriptors left.
  ShmTransport(int wait_set, Doorbell& doorbell);
  ~ShmTransport() override;

  // Direct inside registered regions, else Staged: the sender bounces it through shared memory.
  Reach reach(LinkId link, const Pieces& memory) const override;
  // Seals the memfd against shrinking and against new writable mappings; keeps its own descriptor.
  Status register_region(const Region& region) override;
  Status connect(const Connection& connection) override;  // fds: see local_channel.h
  void post(LinkId link, Frame frame, Receiver& receiver) override;
  bool poll(Receiver& receiver) override;
  void close(LinkId link) override;
};

}  // namespace tent
