// Stage: transport. The chunks of which a slice's payload consists where it is named and not sent:
// their form on the stream, and the checks of what comes from a peer, for all transports that do
// so. Owned by nobody; engine lock held.
// What always holds: no count, length or address of a peer's is used before it was checked here.
#pragma once

#include <cstdint>

#include "core/types.h"
#include "transports/read_ahead.h"
#include "transports/transport.h"

namespace tent {

struct NamedPiece {     // on the stream
  std::uint64_t space;  // what `place` counts in: a region's number, or as the transport has it
  std::uint64_t place;
  std::uint64_t bytes;
};
static_assert(sizeof(NamedPiece) == 24);

struct ChunkHeader {  // on the stream, before its pieces
  enum class Kind : std::uint32_t {
    Pieces = 1,
    Torn = 2,   // the source has ended: there is nothing for the rest of the slice
    Bytes = 3,  // so many bytes follow themselves; only where the transport has it so
    Space = 4,  // what pieces that follow count in; only where the transport has it so
  };
  Kind kind = Kind::Pieces;
  std::uint32_t count = 0;
};
static_assert(sizeof(ChunkHeader) == 8);

inline constexpr std::size_t kChunkPiecesMax = 128;
inline constexpr std::size_t kChunkBytesMax =
    sizeof(ChunkHeader) + kChunkPiecesMax * sizeof(NamedPiece);
static_assert(kChunkBytesMax <= ReadAhead::kBytes);

// The kind that a transport has beside Pieces and Torn: at most so many, and what each takes.
struct ChunkExtra {
  ChunkHeader::Kind kind = ChunkHeader::Kind::Torn;
  std::uint32_t count_max = 0;
  std::size_t unit_bytes = 0;
};

struct Chunk {
  ChunkHeader header;
  const std::uint8_t* body = nullptr;
  std::size_t bytes = 0;  // with its header: what is to be skipped
};

// All of the next chunk, in `ahead`. False: it has not come yet, or is malformed.
bool whole_chunk(LinkState& link, ReadAhead& ahead, const ChunkExtra& extra, Chunk& out);

// One of the pieces that lie at `bytes`. False: it cannot be, where the slice has `left` bytes
// left.
bool take_piece(LinkState& link, const std::uint8_t* bytes, std::uint64_t left, NamedPiece& out);

// The slice has a hole from `offset` of its flow on. It must never count as landed: only a transfer
// that has ended here, too, may be finished with it.
bool take_hole(LinkState& link, Receiver& receiver, TransferId flow, std::uint64_t offset,
               std::uint64_t bytes, Pieces& scratch);

// The peer has sent what cannot be. Returns false.
bool malformed(LinkState& link);

}  // namespace tent
