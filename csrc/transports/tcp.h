// Stage: transport. TCP rails: one connected socket per link, IPv4 or IPv6, the payload inline.
// Called by the thread that holds the engine lock; nothing blocks.
// What always holds: memory is touched only inside send() and poll(), at addresses that the
// Receiver named in the same call; after close() the kernel throws away what it had yet to send.
#pragma once

#include <cstdint>

#include "transports/descriptor.h"
#include "transports/link_table.h"
#include "transports/transport.h"

namespace tent {

struct TcpLink;

class TcpTransport final : public Transport {
 public:
  // `wait_set` is the engine's epoll descriptor; it becomes readable when poll() has work to do.
  // Throws std::system_error when the process has no descriptors left.
  explicit TcpTransport(int wait_set, std::uint64_t poll_bytes = kPollBytes);
  ~TcpTransport() override;

  Reach reach(LinkId link, const Pieces& memory) const override;
  Status register_region(const Region& region) override;  // any memory will do: nothing to do
  Status connect(const Connection& connection) override;  // fds: [connected socket]
  void post(LinkId link, Frame frame) override;
  void send(LinkId link, Receiver& receiver) override;
  bool poll(Receiver& receiver) override;
  void close(LinkId link) override;

 private:
  bool serve(TcpLink& link, std::uint32_t events, Receiver& receiver);
  void watch_room(TcpLink& link);

  const std::uint64_t poll_bytes_;
  Descriptor ready_;  // epoll: the sockets with something to do
  LinkTable<TcpLink> links_;
  std::vector<LinkId> later_;  // bytes of theirs wait for memory, maybe none in the socket
};

}  // namespace tent
