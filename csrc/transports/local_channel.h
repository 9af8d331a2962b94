// Stage: transport. The same-host link below shm and cma: two byte rings in one memfd, the Unix
// socket of the handshake beside them for passing descriptors and for noticing the peer's end.
//
// Descriptors, the same on both sides: Connection::fds = [channel memfd, connected Unix socket].
// The dialer calls open_local_channel() -> (ours, theirs) = ([memfd], [memfd]), sends `theirs` with
// SCM_RIGHTS in its handshake, closes its copy of `theirs`, and appends the Unix socket to `ours`;
// the accepting side appends its end of the socket to what it received. After connect() the socket
// belongs to the transport: nothing else may read from it or write to it, and whoever read the end
// of the handshake must not have read past it, since the peer's transport may already be talking.
//
// A ring is a stream of bytes from one process to the other, one thread at a time on each side.
// What always holds: positions only grow; what the other process wrote is checked each time it is
// read, and never used to address memory before.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/types.h"
#include "transports/byte_stream.h"
#include "transports/descriptor.h"

namespace tent {

// Makes the memory of a channel. Both lists are the caller's to close.
Status open_local_channel(std::vector<int>& ours, std::vector<int>& theirs);

struct RingHeader;  // in the shared memory; see local_channel.cpp

class LocalChannel final : public ByteStream {
 public:
  static constexpr std::uint64_t kRingBytes = 64u << 10;

  explicit LocalChannel(LinkState& link) : link_(link) {}
  // Maps the channel; the descriptor may be closed after. The dialer writes the first ring.
  Status open(int memory, bool dialed);

  std::ptrdiff_t write_some(const iovec* parts, int count) override;
  std::ptrdiff_t read_some(const iovec* parts, int count) override;

  // Whether the peer has something to do since the last call: bytes to read, or room that it
  // waited for. The doorbell is then to be rung.
  bool take_news();
  // After a write, or staging, that did not fit. True: the peer will ring once there is room.
  // False: there has been some meanwhile, try again.
  bool wait_for_room();

  // Beside our outgoing ring the peer says how far it has consumed the sender's staging memory, a
  // position that only grows and is checked by whoever owns that memory; and we say it to the peer.
  std::uint64_t staging_consumed() const;
  void consume_staging(std::uint64_t position);

  // What the peer named is copied between these two. False when it was withdrawn: before, or while
  // it was copied. Then the memory may be another transfer's by now, and what was copied is wrong.
  bool begin_fetch();
  bool may_fetch() const;  // between the two, where copies begin and end one by one
  bool end_fetch();
  // Withdraws all that was named to the peer and is not fetched. The answer says whether the peer
  // is in the middle of it: it may be stopped there for any time.
  class Withdrawal {
   public:
    Withdrawal(std::shared_ptr<const Mapping> memory, const RingHeader* ring)
        : memory_(std::move(memory)), ring_(ring) {}
    bool fetching() const;

   private:
    std::shared_ptr<const Mapping> memory_;
    const RingHeader* ring_;
  };
  Withdrawal withdraw();

 private:
  LinkState& link_;
  std::shared_ptr<Mapping> memory_;
  RingHeader *out_ = nullptr, *in_ = nullptr;
  std::uint8_t *out_bytes_ = nullptr, *in_bytes_ = nullptr;
  std::uint64_t written_ = 0, room_end_ = kRingBytes;  // of out_; room_end_: as last seen
  std::uint64_t read_ = 0;                             // of in_
  mutable std::uint64_t staging_seen_ = 0;             // as last handed out
  bool wrote_ = false, consumed_ = false;
};

}  // namespace tent
