// Stage: transport. Cross-memory attach: slices are described in a ring by their addresses in the
// sender, and the receiver fetches them with process_vm_readv. Ordinary memory, one copy.
// Called by the thread that holds the engine lock; nothing blocks.
// What always holds: only poll() copies, in bounded parts, only from the process that connected.
#pragma once

#include <cstdint>
#include <string>

#include "transports/local_transport.h"

namespace tent {

class CmaTransport final : public LocalTransport {
 public:
  // Throws std::system_error when the process has no descriptors left.
  CmaTransport(int wait_set, Doorbell& doorbell, std::uint64_t poll_bytes = kPollBytes)
      : LocalTransport(wait_set, doorbell, poll_bytes) {}

  Reach reach(LinkId link, const Pieces& memory) const override;  // Direct
  Status register_region(const Region& region) override;          // any memory will do

 private:
  std::unique_ptr<LocalLink> make_link() override;
  Status accepts(const PeerSocket& peer) const override;
};

// Whether this process may read the memory of `pid`, where the word `value` lies at `address`.
// "" or why it is refused and what to do about it. Any thread.
std::string probe_cma(std::int32_t pid, std::uint64_t address, std::uint64_t value);

}  // namespace tent
