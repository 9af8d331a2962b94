// Stage: transport. Cross-memory attach: slices are described in a ring by their addresses in the
// sender, and the receiver fetches them with process_vm_readv. Ordinary memory, one copy.
// Called by the thread that holds the engine lock; nothing blocks.
// What always holds: only poll() copies, in bounded parts, only from the process that connected.
#pragma once

#include <cstdint>
#include <string>

#include "transports/doorbell.h"
#include "transports/transport.h"

namespace tent {

class CmaTransport final : public Transport {
 public:
  // Throws std::system_error when the process has no descriptors left.
  CmaTransport(int wait_set, Doorbell& doorbell);
  ~CmaTransport() override;

  Reach reach(LinkId link, const Pieces& memory) const override;  // Direct
  Status register_region(const Region& region) override;          // any memory will do
  Status connect(const Connection& connection) override;          // fds: see local_channel.h
  void post(LinkId link, Frame frame, Receiver& receiver) override;
  bool poll(Receiver& receiver) override;
  void close(LinkId link) override;
};

// Whether this process may read the memory of `pid`, where the word `value` lies at `address`.
// "" or why it is refused and what to do about it. Any thread.
std::string probe_cma(std::int32_t pid, std::uint64_t address, std::uint64_t value);

}  // namespace tent
