// Stage: transport. The receiving half of slices between GPUs. The stream says where their bytes
// lie in the peer's allocations; here copies to where they belong are started on our GPU, several
// at a time, and a slice has landed when its copies have ended, in the order of the slices.
// Owned by one link; engine lock held.
// What always holds: a copy is started only into memory that the Receiver named in the same call,
// and while the channel says that we fetch; stop() returns when none goes on.
#pragma once

#include "transports/cuda_memory.h"
#include "transports/frame_reader.h"
#include "transports/local_channel.h"
#include "transports/local_slices.h"
#include "transports/ring.h"

namespace tent {

using GpuCopyId = std::uint64_t;

// The link, as the slices see it.
class GpuFetcher {
 public:
  virtual ~GpuFetcher() = default;
  virtual void learn(const SharedSpace& space) = 0;
  // Starts to copy the bytes of `from` into `to`, which are as many; 0 after it has set the link's
  // fault.
  virtual GpuCopyId copy(TransferId flow, std::span<const NamedPiece> from, const Pieces& to) = 0;
  virtual void finish(GpuCopyId id) = 0;  // returns when it has ended
};

class CudaSliceReader final : public SliceReader {
 public:
  CudaSliceReader(LinkState& link, LocalChannel& channel, GpuFetcher& fetcher)
      : link_(link), channel_(channel), fetcher_(fetcher) {}

  void begin(const FrameHeader& header) override { slices_.push({header, 0, 0}); }
  bool take(ReadAhead& ahead, Receiver& receiver, std::uint64_t& budget) override;
  bool lands_later() const override { return true; }

  void copied(GpuCopyId id);  // only notes it
  // Tells what has landed. True: there is room again for what the stream has.
  bool advance(Receiver& receiver, bool& moved);
  void wait();  // for all copies, which are still told of by copied()
  void stop();
  bool idle() const { return copies_.empty(); }

 private:
  static constexpr std::size_t kCopiesMax = 64, kToldMax = 512, kPiecesMax = 512;
  static constexpr std::uint64_t kCopyCost = 16u << 10;  // of the budget, for each piece

  struct Slice {
    FrameHeader header;
    std::uint64_t described = 0;  // bytes that the stream told of
    std::uint64_t settled = 0;    // ... of these in place or dropped
  };
  struct Copy {
    GpuCopyId id = 0;
    std::size_t slice = 0;  // counted from the first ever
    std::uint64_t bytes = 0;
    bool ended = false;
  };

  bool next_chunk(ReadAhead& ahead, Receiver& receiver);
  bool take_space(const std::uint8_t* bytes);
  bool take_pieces(const std::uint8_t* bytes, std::size_t count);
  bool take_torn(Receiver& receiver);
  bool start(Receiver& receiver, std::uint64_t& budget);
  bool start_copy(std::uint64_t bytes, const FrameHeader& header);
  void split(std::uint64_t bytes);

  LinkState& link_;
  LocalChannel& channel_;
  GpuFetcher& fetcher_;
  Ring<Slice> slices_;            // in order; the last may still be described
  std::size_t first_ = 0;         // number of the first of them
  std::vector<NamedPiece> told_;  // of the last slice, not yet asked for
  std::size_t told_at_ = 0;       // of them: the first
  std::uint64_t told_bytes_ = 0;
  std::uint64_t bite_ = kBodyBytesMax;  // asked of the Receiver at a time
  Ring<Copy> copies_;
  Pieces pieces_;
  std::vector<NamedPiece> from_;
};

}  // namespace tent
