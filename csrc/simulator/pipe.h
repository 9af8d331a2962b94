// Stage: tests. One direction of a link: a first-in-first-out pipe of bytes with what the sender
// has queued, what is on its way, and what waits in the receiver's kernel. Values; owned by Link;
// one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "core/types.h"
#include "core/wire.h"
#include "simulator/queue.h"

namespace tent::sim {

// How a frame is spoiled on its way.
enum class Mischief : std::uint8_t {
  None,
  Double,
  Swap,
  Magic,
  Kind,
  Sequence,
  Ack,
  Offset,
  Body,
  Payload,
  kCount
};

struct Parcel {  // a frame on its way
  Frame frame;
  std::vector<std::uint8_t> payload;  // a slice's bytes as they were when they were sent
  Pieces source;                      // where they lie (rails on one host)
  std::uint64_t offset = 0;           // of a slice, as it was posted
  std::uint64_t sent = 0;
  bool started = false;
  Mischief mischief = Mischief::None;
};

struct Chunk {  // a part of the first parcel that has not wholly arrived
  std::uint64_t from = 0, bytes = 0;
  std::uint64_t cost = 0;  // bytes on the wire
  TimeNs at = 0;
  bool first = false, last = false;
  bool end_of_stream = false;
};

struct Pipe {
  Queue<Parcel> parcels;    // front: the one the receiver is reading
  std::size_t sending = 0;  // of these: the one the sender is sending
  Queue<Chunk> chunks;
  std::uint64_t in_flight = 0;
  TimeNs free_at = 0, last_at = 0;
  TimeNs held_until = 0;  // nothing arrives before; kNever: never
  bool arrival_planned = false;
  Mischief mischief = Mischief::None;  // for the next frame that it fits
  // What the receiver made of the slice at the front.
  Pieces granted;  // a link that places by itself: where
  bool was_granted = false, was_refused = false;

  void clear() {
    parcels.clear();
    chunks.clear();
    sending = 0;
    in_flight = 0;
    was_granted = was_refused = false;
  }
};

}  // namespace tent::sim
