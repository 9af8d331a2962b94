// Stage: transport. The payload of a slice between processes of one host: not the bytes, but chunks
// of the stream that name where they lie in the sender's memory. The receiver copies them.
// Owned by one link; engine lock held.
// What always holds: what the peer named is checked before it is used, and copied only into memory
// that the Receiver named in the same call, in bounded parts.
#pragma once

#include <array>
#include <span>

#include "transports/chunks.h"
#include "transports/frame_reader.h"
#include "transports/frame_writer.h"
#include "transports/local_channel.h"

namespace tent {

inline constexpr std::size_t kPrefaceBytesMax = 128;
inline constexpr std::uint64_t kCarriedBytesMax = kChunkBytesMax - sizeof(ChunkHeader);

// The sender's half of a same-host transport.
class PieceNamer {
 public:
  virtual ~PieceNamer() = default;
  // Appends names for the first bytes of `pieces`, at most kChunkPiecesMax, and returns how many
  // bytes these are; 0: not now. Takes bytes that it had to copy off the budget.
  virtual std::uint64_t name(const Pieces& pieces, std::uint64_t& budget,
                             std::vector<NamedPiece>& out) = 0;
  // What the peer must know before it can understand the names of the last name(): whole chunks, at
  // most kPrefaceBytesMax.
  virtual std::span<const std::uint8_t> preface() { return {}; }
  // Whether these bytes are to follow in the chunk, since naming them costs more (for a slice of so
  // many bytes in all) or is not possible.
  virtual bool carries(const Pieces&, std::uint64_t slice_bytes) { return slice_bytes == 0; }
};

// The receiver's half. Both return false after they have set the link's fault.
class PieceFetcher {
 public:
  virtual ~PieceFetcher() = default;
  // Copies the bytes of `from` into `to`, which are as many.
  virtual bool fetch(std::span<const NamedPiece> from, const Pieces& to) = 0;
  // The bytes of `piece` were fetched or dropped; the sender may reuse them.
  virtual bool release(const NamedPiece& piece) = 0;
};

class LocalSliceWriter final : public SliceWriter {
 public:
  LocalSliceWriter(const LinkState& link, PieceNamer& namer) : link_(link), namer_(namer) {}
  // A chunk may stand for so many bytes.
  void allow(std::uint64_t bytes) { bite_.allow(bytes); }
  void begin(const FrameHeader& header) override;
  Next gather(bool committed, Receiver& receiver, std::uint64_t& budget,
              std::vector<iovec>& parts) override;
  bool sent(std::size_t bytes) override;

 private:
  Next name_next(bool committed, Receiver& receiver, std::uint64_t& budget);
  void write_chunk(ChunkHeader::Kind kind);
  void write_bytes();

  const LinkState& link_;
  PieceNamer& namer_;
  FrameHeader header_;
  std::uint64_t done_ = 0;     // payload bytes whose chunks are on the stream
  std::uint64_t covered_ = 0;  // payload bytes that the chunk at hand stands for
  std::size_t chunk_bytes_ = 0, chunk_sent_ = 0;
  Bite bite_{kChunkPiecesMax};
  Pieces pieces_;
  std::vector<NamedPiece> named_;
  std::array<std::uint8_t, kPrefaceBytesMax + kChunkBytesMax> chunk_;
};

class LocalSliceReader final : public SliceReader {
 public:
  LocalSliceReader(LinkState& link, LocalChannel& channel, PieceFetcher& fetcher)
      : link_(link), channel_(channel), fetcher_(fetcher) {}
  void begin(const FrameHeader& header) override;
  bool take(ReadAhead& ahead, Receiver& receiver, std::uint64_t& budget) override;

 private:
  bool next_chunk(ReadAhead& ahead, Receiver& receiver);
  bool take_pieces(const std::uint8_t* bytes, std::size_t count);
  bool pull(Receiver& receiver, std::uint64_t& budget);
  bool fetch();
  void split(std::uint64_t bytes);

  LinkState& link_;
  LocalChannel& channel_;
  PieceFetcher& fetcher_;
  FrameHeader header_;
  std::uint64_t done_ = 0;        // payload bytes that were fetched or dropped
  std::uint64_t chunk_left_ = 0;  // payload bytes in chunk_ from at_ on
  std::size_t at_ = 0;
  Bite bite_{512};
  Pieces pieces_;
  std::vector<NamedPiece> chunk_, from_;
};

}  // namespace tent
