// Stage: transport. Understands the frames on a link's byte stream and brings them to the Receiver.
// Owned by one link of any transport; engine lock held.
// What always holds: nothing of a frame reaches the Receiver before its header was checked; what is
// malformed sets the link's fault, and nothing after it is looked at.
#pragma once

#include <vector>

#include "transports/read_ahead.h"
#include "transports/transport.h"

namespace tent {

// How the payload of a slice comes from the stream into the memory that the Receiver names.
class SliceReader {
 public:
  virtual ~SliceReader() = default;
  virtual void begin(const FrameHeader& header) = 0;
  // Takes what has come, and its bytes off the budget. True: the slice is complete and in place.
  // False: its rest must be waited for, or the budget is spent, or the link is no longer live.
  virtual bool take(ReadAhead& ahead, Receiver& receiver, std::uint64_t& budget) = 0;
  // take() only took what the stream has of the slice: the reader calls landed() itself, later.
  virtual bool lands_later() const { return false; }
};

class FrameReader {
 public:
  FrameReader(LinkState& link, ByteStream& stream, SliceReader& slices)
      : link_(link), slices_(slices), ahead_(link, stream) {}

  // Reads what has come, until `budget` bytes are spent (the last part may be larger than what was
  // left). True when the budget ended it, not the stream: call again. `moved` is set when anything
  // was read.
  bool receive(Receiver& receiver, std::uint64_t budget, bool& moved);
  // Understands what was read ahead, without reading more: an empty socket does not remind of it.
  void catch_up(Receiver& receiver);

 private:
  enum class State { Header, Body, Slice };

  bool step(Receiver& receiver, std::uint64_t& budget);
  bool take_header(Receiver& receiver);
  bool take_body(Receiver& receiver, std::uint64_t& budget);
  bool take_slice(Receiver& receiver, std::uint64_t& budget);
  bool deliver(Receiver& receiver, std::span<const std::uint8_t> body);

  LinkState& link_;
  SliceReader& slices_;
  State state_ = State::Header;
  FrameHeader header_;
  Body body_;  // of a frame that does not fit into ahead_
  std::size_t body_taken_ = 0;
  ReadAhead ahead_;
};

}  // namespace tent
