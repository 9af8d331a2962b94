// Stage: transport. The receiving half of slices on an RDMA link. The stream says where their bytes
// lie in the peer's memory; here they are fetched with RDMA reads, several at a time, and told to
// the Receiver as landed when the reads have completed, in the order of the slices.
// Owned by one link; engine lock held.
// What always holds: a read goes only into memory that the Receiver named when it was posted, and
// placing() knows of it until it has completed.
#pragma once

#include "transports/frame_reader.h"
#include "transports/local_slices.h"
#include "transports/ring.h"

namespace tent {

// The link, as the slices see it.
class ReadPoster {
 public:
  struct Posted {
    std::uint64_t bytes = 0;          // of the first bytes of `to`; 0: not now
    std::uint8_t* bounced = nullptr;  // where they come to instead, to be copied
  };
  virtual ~ReadPoster() = default;
  virtual bool may_read() const = 0;  // there is room for one more
  // Starts to read `from` into `to`, which has as many bytes, or a first part of it. Sets the
  // link's fault where it fails.
  virtual Posted post_read(const NamedPiece& from, const Pieces& to) = 0;
  virtual void copied() = 0;  // what was bounced is where it belongs
};

class RdmaSliceReader final : public SliceReader {
 public:
  RdmaSliceReader(LinkState& link, ReadPoster& poster) : link_(link), poster_(poster) {}

  void begin(const FrameHeader& header) override;
  bool take(ReadAhead& ahead, Receiver& receiver, std::uint64_t& budget) override;
  bool lands_later() const override { return true; }

  // Posts reads while there is room and budget, and tells what has landed. True: the budget ended
  // it, call again.
  bool advance(Receiver& receiver, std::uint64_t budget, bool& moved);
  // The oldest read has completed. Only counts.
  void read_done() { ++done_; }
  bool placing(TransferId flow) const;  // reads are under way for it
  bool full() const { return slices_.size() > kSlicesMax || told_.size() > kToldMax; }

 private:
  // What the peer may tell of before it is fetched; its window stays far below.
  static constexpr std::size_t kSlicesMax = 4096, kToldMax = 16384;
  static constexpr std::uint64_t kReadBytes = 1u << 20;  // of one read
  // Bytes under way at a time: enough for a fast link's round trip. More would only delay the
  // acknowledgements, which travel behind the reads' answers.
  static constexpr std::uint64_t kBytesOut = 2u << 20;

  struct Slice {
    FrameHeader header;
    std::uint64_t described = 0;  // bytes that the stream told of, or carried
    std::uint64_t settled = 0;    // ... of these in place or dropped
  };
  struct Told {             // not yet asked for
    std::size_t slice = 0;  // counted from the first ever
    std::uint64_t offset = 0;
    NamedPiece piece;
  };
  struct Read {  // under way
    std::size_t slice = 0;
    std::uint64_t offset = 0, bytes = 0;
    std::uint8_t* bounced = nullptr;
  };

  bool next_chunk(ReadAhead& ahead, Receiver& receiver);
  bool take_pieces(const std::uint8_t* bytes, std::size_t count);
  bool take_bytes(const std::uint8_t* bytes, std::size_t count, Receiver& receiver);
  bool take_torn(Receiver& receiver);
  bool read_next(Receiver& receiver, std::uint64_t& budget);
  bool settle_reads(Receiver& receiver);
  bool copy_in(Receiver& receiver, const FrameHeader& header, std::uint64_t offset,
               const std::uint8_t* bytes, std::uint64_t count);
  Slice& slice(std::size_t number) { return slices_[number - first_]; }

  LinkState& link_;
  ReadPoster& poster_;
  Ring<Slice> slices_;     // in order; the last may still be described
  std::size_t first_ = 0;  // number of the first of them
  Ring<Told> told_;
  Ring<Read> reads_;
  std::uint64_t bytes_out_ = 0;
  std::size_t done_ = 0;  // of reads_, from the front
  Bite bite_{64};
  Pieces pieces_;
};

}  // namespace tent
