// Stage: transport. Before a queue pair is joined over Ethernet, its kernel has to know the link
// address of the peer's port. It asks the network itself, but where the answer is there at once, as
// on a short wire, it has been seen to overlook it, and to go on a second later.
// Any thread, no lock; never waits. What always holds: nothing depends on it but time.
#pragma once

#include <cstdint>
#include <string>

#include "drivers/verbs.h"

namespace tent {

// Sends an empty datagram the way that packets between these two will go, so that the address is
// known, or asked for, when the kernel wants it.
void ask_for_neighbour(const std::string& device, std::uint8_t port, std::uint8_t gid_index,
                       const ibv::Gid& own, const ibv::Gid& peer);

}  // namespace tent
