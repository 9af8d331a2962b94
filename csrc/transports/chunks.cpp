// Stage: transport. See chunks.h.
#include "transports/chunks.h"

#include <cstring>

namespace tent {
namespace {

// What follows the header. False: it cannot be, or this transport has no such kind.
bool body_bytes(const ChunkHeader& header, const ChunkExtra& extra, std::size_t& out) {
  out = 0;
  if (header.kind == ChunkHeader::Kind::Torn) return header.count == 0;
  if (header.kind == ChunkHeader::Kind::Pieces) {
    out = header.count * sizeof(NamedPiece);
    return header.count > 0 && header.count <= kChunkPiecesMax;
  }
  out = header.count * extra.unit_bytes;
  return header.kind == extra.kind && header.count > 0 && header.count <= extra.count_max;
}

}  // namespace

bool malformed(LinkState& link) {
  return link.broke("malformed slice description from the peer; the link was closed");
}

bool whole_chunk(LinkState& link, ReadAhead& ahead, const ChunkExtra& extra, Chunk& out) {
  if (!ahead.need(sizeof out.header) || !link.live()) return false;
  std::memcpy(&out.header, ahead.data(), sizeof out.header);
  std::size_t body = 0;
  if (!body_bytes(out.header, extra, body)) return malformed(link);
  out.bytes = sizeof out.header + body;
  if (!ahead.need(out.bytes) || !link.live()) return false;
  out.body = ahead.data() + sizeof out.header;
  return true;
}

bool take_piece(LinkState& link, const std::uint8_t* bytes, std::uint64_t left, NamedPiece& out) {
  std::memcpy(&out, bytes, sizeof out);
  if (out.bytes == 0 || out.bytes > left || out.place > UINT64_MAX - out.bytes) {
    return malformed(link);
  }
  return true;
}

bool take_hole(LinkState& link, Receiver& receiver, TransferId flow, std::uint64_t offset,
               std::uint64_t bytes, Pieces& scratch) {
  scratch.clear();
  if (receiver.landing(link.id, flow, offset, bytes, scratch) && link.live()) {
    link.broke("the peer gave up a slice that is still awaited here");
  }
  return link.live();
}

}  // namespace tent
