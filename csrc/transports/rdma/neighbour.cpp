// Stage: transport. See neighbour.h.
#include "transports/rdma/neighbour.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "transports/descriptor.h"

namespace tent {
namespace {

constexpr std::uint16_t kDiscard = 9;  // RFC 863: whoever listens there throws it away
constexpr std::uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

// The interface of a port's GID, as the kernel tells it; "" for what is not Ethernet.
std::string interface_of(const std::string& device, std::uint8_t port, std::uint8_t gid_index) {
  std::ifstream file("/sys/class/infiniband/" + device + "/ports/" + std::to_string(port) +
                     "/gid_attrs/ndevs/" + std::to_string(gid_index));
  std::string name;
  file >> name;
  return name;
}

// The IP address that a GID is.
socklen_t address_of(const ibv::Gid& gid, std::uint16_t port, unsigned interface,
                     sockaddr_storage& out) {
  out = {};
  if (std::equal(std::begin(kMapped), std::end(kMapped), gid.raw)) {
    auto& four = reinterpret_cast<sockaddr_in&>(out);
    four.sin_family = AF_INET;
    four.sin_port = htons(port);
    std::memcpy(&four.sin_addr, gid.raw + sizeof kMapped, sizeof four.sin_addr);
    return sizeof four;
  }
  auto& six = reinterpret_cast<sockaddr_in6&>(out);
  six.sin6_family = AF_INET6;
  six.sin6_port = htons(port);
  std::memcpy(&six.sin6_addr, gid.raw, sizeof six.sin6_addr);
  if (IN6_IS_ADDR_LINKLOCAL(&six.sin6_addr)) six.sin6_scope_id = interface;
  return sizeof six;
}

}  // namespace

void ask_for_neighbour(const std::string& device, std::uint8_t port, std::uint8_t gid_index,
                       const ibv::Gid& own, const ibv::Gid& peer) {
  const std::string name = interface_of(device, port, gid_index);
  const unsigned interface = name.empty() ? 0 : ::if_nametoindex(name.c_str());
  if (interface == 0) return;  // or it is in another network namespace
  sockaddr_storage from, to;
  const socklen_t from_bytes = address_of(own, 0, interface, from);
  const socklen_t to_bytes = address_of(peer, kDiscard, interface, to);
  const Descriptor sock(::socket(to.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!sock || from.ss_family != to.ss_family) return;
  ::setsockopt(sock.get(), SOL_SOCKET, SO_BINDTODEVICE, name.c_str(), socklen_t(name.size()));
  if (::bind(sock.get(), reinterpret_cast<const sockaddr*>(&from), from_bytes) != 0) return;
  ::sendto(sock.get(), "", 0, MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&to), to_bytes);
}

}  // namespace tent
