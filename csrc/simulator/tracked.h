// Stage: tests. One transfer as the simulator knows it: which memory it may touch at both ends,
// what must be there when it has succeeded, and which reasons it has to fail. Values; owned by
// Ledger; one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "core/node.h"
#include "simulator/arena.h"

namespace tent::sim {

inline constexpr std::uint32_t kNone = 0xffffffffu;

// Why a transfer may end with something else than success.
enum Excuse : std::uint8_t {
  kOwnEnd = 1,      // it was cancelled, or its time was limited
  kForbidden = 2,   // it asked for what it may not have
  kWithdrawn = 4,   // the owner revoked the blocks or closed the segment
  kMismatched = 8,  // the two halves of the message disagree
};

struct Tracked {
  std::uint32_t number = 0;
  Request::Op op = Request::Op::Send;
  TransferId id = 0;
  std::uint32_t process = 0, generation = 0;
  std::uint32_t pairing = kNone;  // none: a receive from any source
  std::uint64_t bytes = 0;
  Pattern pattern = 0;  // of the source; a receive learns it from its match
  std::uint8_t excuses = 0;
  TimeNs expires = kNever;  // simulated time
  bool cancel_asked = false;
  TimeNs stop_asked = kNever;  // when it was cancelled or expired, simulated time
  bool unreachable = false;    // it asked for a rail that does not exist

  Layout local;
  std::uint64_t span = 0, span_bytes = 0;  // what it took from its process's arena
  bool scattered = false;

  // Send, Recv
  std::uint64_t tag = 0;
  std::uint32_t ordinal = kNone;  // its place among those with its tag, where order matters
  std::uint32_t match = kNone;

  // Write, Read: the peer's memory
  std::uint32_t owner = kNone, owner_generation = 0;
  std::uint32_t exported = kNone;    // which segment of the owner
  std::vector<std::uint32_t> units;  // of it
  Layout remote;                     // addresses
  bool remote_open = false;  // the peer's memory may still be touched for it, and is not reused
  bool has_note = false;
  std::uint32_t notes_seen = 0;

  bool ended = false, dead = false;  // dead: with its process
  Code code = Code::Ok;
};

}  // namespace tent::sim
