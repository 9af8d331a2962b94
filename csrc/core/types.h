// Stage: all. The plain words of the data plane: identifiers, time, status, priorities.
// Values only; no thread, no lock. Every other header may include this one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tent {

using TimeNs = std::int64_t;   // monotonic clock, nanoseconds; always passed in, never read here
using PeerId = std::uint32_t;  // local name of one incarnation of a peer
using LinkId = std::uint64_t;  // one connection; both ends know it by this number; never reused
using TransferId =
    std::uint64_t;  // made by one engine, never reused; on the wire it is the flow id
using SegmentId = std::uint32_t;

inline constexpr PeerId kAnyPeer = 0xffffffffu;
inline constexpr TimeNs kNever = INT64_MAX;
inline constexpr TimeNs kMicrosecond = 1'000, kMillisecond = 1'000'000, kSecond = 1'000'000'000;

enum class Code : std::uint8_t {
  Ok = 0,
  Failed = 1,       // TransferError
  PeerLost = 2,     // PeerLostError
  Access = 3,       // AccessError: rights, bounds, closed or stale segment
  Timeout = 4,      // TransferTimeout
  Cancelled = 5,    // TransferCancelled
  Mismatch = 6,     // TransferError: the two ends disagree on bytes or dtype
  Unreachable = 7,  // TransferError: no rail that `require` allows
};

struct Status {
  Code code = Code::Ok;
  std::string text;  // what was wrong and what to do
  std::string rail;  // the rail it happened on, when it was one
  bool ok() const { return code == Code::Ok; }
};

enum class Priority : std::uint8_t { Foreground = 0, Background = 1 };

// What a rail is made of. A set of kinds is a bit mask: 1 << kind.
enum class RailKind : std::uint8_t { Shm = 0, Cma = 1, Tcp = 2, Rdma = 3, CudaIpc = 4 };
using RailKinds = std::uint8_t;
inline constexpr RailKinds kAllRails = 0xff;
constexpr RailKinds rail_bit(RailKind kind) { return RailKinds(1u << unsigned(kind)); }

struct Piece {  // contiguous bytes of this process's memory
  std::uint64_t address;
  std::uint64_t bytes;
};
using Pieces = std::vector<Piece>;

}  // namespace tent
