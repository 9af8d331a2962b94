// Stage: transport. Puts a link's frames onto its byte stream, in order. Owned by one link of any
// transport; engine lock held.
// What always holds: a slice's memory is asked for when its bytes are about to be written, again
// after every pause, and never touched outside the call in which it was named.
#pragma once

#include <vector>

#include "transports/byte_stream.h"
#include "transports/frame_queue.h"
#include "transports/transport.h"

namespace tent {

// How the payload of a slice goes onto the stream: the bytes themselves, or where they lie.
class SliceWriter {
 public:
  enum class Next { Ready, Blocked, Gone };

  virtual ~SliceWriter() = default;
  virtual void begin(const FrameHeader& header) = 0;
  // Appends the next stream bytes of the slice; takes bytes that it had to copy off the budget.
  // Gone: the source has ended, said only while the header is not yet `committed` to the stream.
  virtual Next gather(bool committed, Receiver& receiver, std::uint64_t& budget,
                      std::vector<iovec>& parts) = 0;
  // So many of the bytes of the last gather() are on the stream. True: the slice is complete.
  virtual bool sent(std::size_t bytes) = 0;
};

class FrameWriter {
 public:
  FrameWriter(LinkState& link, ByteStream& stream, SliceWriter& slices)
      : link_(link), stream_(stream), slices_(slices) {}

  bool empty() const { return queue_.empty(); }
  void push(Frame frame) { queue_.push(std::move(frame)); }
  // Writes what fits now, up to about `budget` bytes. True when the budget ended it, not the
  // stream: call again. `moved` is set when anything was written.
  bool send(Receiver& receiver, std::uint64_t budget, bool& moved);

 private:
  std::size_t gather(Receiver& receiver, std::uint64_t& budget, std::vector<iovec>& parts);
  bool gather_slice(std::size_t index, Receiver& receiver, std::uint64_t& budget,
                    std::vector<iovec>& parts);
  void advance(std::size_t bytes);
  void pop();

  LinkState& link_;
  ByteStream& stream_;
  SliceWriter& slices_;
  FrameQueue queue_;
  std::size_t sent_ = 0;      // of the first frame: its header and, unless a slice, its body
  bool slice_begun_ = false;  // slices_ knows the first slice in the queue
};

}  // namespace tent
