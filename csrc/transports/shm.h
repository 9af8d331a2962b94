// Stage: transport. Shared memory: slices are described in a ring, the receiver maps the sender's
// regions read-only and copies into the landing memory itself. No system call per slice.
// Called by the thread that holds the engine lock; nothing blocks.
// What always holds: only poll() copies to where slices land, in bounded parts; a peer's region is
// never written to.
#pragma once

#include "transports/local_transport.h"
#include "transports/region_table.h"

namespace tent {

class ShmTransport final : public LocalTransport {
 public:
  // Throws std::system_error when the process has no descriptors left.
  ShmTransport(int wait_set, Doorbell& doorbell, std::uint64_t poll_bytes = kPollBytes)
      : LocalTransport(wait_set, doorbell, poll_bytes) {}

  // Direct inside registered regions, else Staged: the sender bounces it through shared memory.
  Reach reach(LinkId link, const Pieces& memory) const override;
  // Seals the memfd against shrinking and against new writable mappings (so map it before); keeps
  // its own descriptor. Take a region away only when no transfer uses it any more.
  Status register_region(const Region& region) override;

 private:
  std::unique_ptr<LocalLink> make_link() override;
  Status accepts(const PeerSocket&) const override { return {}; }

  RegionTable regions_;
};

}  // namespace tent
