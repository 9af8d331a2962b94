// Stage: engine. What a schedule of sends and receives (csrc/collectives) needs of the engine, and
// nothing else, so that it runs the same on the engine and in a simulator.
// Thread: every call here, and every Continuation, happens under the engine lock. A Continuation or
// a reminder is never called from inside these calls: always later, when the stack has unwound; it
// may call them again. It must not block; long reductions are cut into pieces.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/node.h"
#include "core/types.h"

namespace tent {

// Bytes of this process: ordinary memory, or a GPU's.
struct Memory {
  std::uint64_t address = 0, bytes = 0;
  Device device = kHost;
};

// Hears of the end of what it started: exactly once, cancelled transfers included. It must stay
// alive until then.
class Continuation {
 public:
  virtual ~Continuation() = default;
  virtual void ended(TransferId id, const Report& report) = 0;
};

class Transfers {
 public:
  virtual ~Transfers() = default;
  virtual TimeNs now() const = 0;
  // `expires` is an absolute time (kNever: none). Memory belongs to the engine until `ended`, at
  // once: what a GPU's streams have queued on it must be over.
  virtual TransferId send(PeerId peer, std::uint64_t context, std::uint64_t tag,
                          const Memory& memory, TimeNs expires, Continuation* then) = 0;
  // `peer` may be kAnyPeer; the report names the sender.
  virtual TransferId recv(PeerId peer, std::uint64_t context, std::uint64_t tag,
                          const Memory& memory, TimeNs expires, Continuation* then) = 0;
  // `then` hears, with id 0, when what this stream of a GPU has queued until now is over. Nothing
  // ends that earlier. When it cannot be known `then` hears the reason.
  virtual void after(Device device, std::uint64_t stream, Continuation* then) = 0;
  // A no-op for a transfer that has ended. `ended` still comes, after the fence.
  virtual void cancel(TransferId id) = 0;
  // Calls `then` once, at that time or soon after it. There is one reminder: it replaces the last.
  virtual void remind(TimeNs when, std::function<void()> then) = 0;
};

// A timeout as an absolute time; negative, or beyond the clock: never.
inline TimeNs expiry(TimeNs now, std::int64_t timeout_ns) {
  return timeout_ns < 0 || timeout_ns > kNever - now ? kNever : now + timeout_ns;
}

// The ranks of a process group as peers of this engine.
struct RankMap {
  std::uint64_t context = 0;  // the same on all ranks; separates the group's messages from others
  std::int32_t rank = 0;
  std::int32_t size = 0;
  std::vector<PeerId> peers;  // by rank; the own rank's entry is never used
};

}  // namespace tent
