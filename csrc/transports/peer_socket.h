// Stage: transport. The Unix socket of a same-host link: descriptors go over it, and its end is the
// end of the peer. Beside it a pidfd of the peer, so that the peer's death is noticed even where a
// forked child keeps the socket open, and so that its number cannot come to mean another process.
// Owned by one link; engine lock held; nothing blocks.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>

#include "transports/descriptor.h"

namespace tent {

enum class ParcelKind : std::uint32_t {
  Doorbell = 1,  // fds: page, eventfd. id: the slot to ring. First on every link
  Region = 2,    // fds: memory. id, bytes
  Forget = 3,    // the region `id` is no more
  Staging = 4,   // fds: memory. bytes
  Reads = 5,     // GPU number `id` of the sender can read the one with the key `bytes`; 0: no more
};

struct ParcelLabel {                 // on the socket
  std::uint32_t magic = 0x50544e54;  // "TNTP"
  ParcelKind kind = ParcelKind::Doorbell;
  std::uint64_t id = 0;
  std::uint64_t bytes = 0;
};
static_assert(sizeof(ParcelLabel) == 24);

struct Parcel {
  ParcelLabel label;
  std::array<Descriptor, 2> fds;
};

class PeerSocket {
 public:
  enum class Got : std::uint8_t { Parcel, Nothing, Ended, Malformed };
  enum class Sent : std::uint8_t { All, Waits, Failed };

  // `claimed_pid` counts only where the kernel does not know better.
  Status open(Descriptor socket, std::int32_t claimed_pid);
  int fd() const { return socket_.get(); }
  int pidfd() const { return pidfd_.get(); }  // -1: the kernel gave none
  std::int32_t pid() const { return pid_; }   // 0: the peer is in another PID namespace
  bool alive() const;   // false once the process has ended, or where the kernel gave no pidfd
  bool ending() const;  // also true while a process that is dying still frees its memory

  // Queues a parcel with copies of `fds`; false when the process has no descriptor left.
  bool send(const ParcelLabel& label, int first_fd = -1, int second_fd = -1);
  // Waits: the rest goes when the socket has room again. Failed: errno says why.
  Sent flush();
  Got receive(Parcel& out);
  // The peer notices, whoever else holds copies of the descriptor.
  void shut();

 private:
  Descriptor socket_, pidfd_;
  std::int32_t pid_ = 0;
  std::deque<Parcel> leaving_;
  std::size_t label_sent_ = 0;  // of the first that leaves
  Parcel arriving_;
  std::size_t label_taken_ = 0, fds_taken_ = 0;
};

}  // namespace tent
