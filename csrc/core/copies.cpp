// Stage: slicer. See the header.
#include "core/copies.h"

#include <algorithm>
#include <cstring>

namespace tent {

Body gather(const Layout& source) {
  Pieces pieces;
  source.pieces(0, source.bytes(), pieces);
  Body bytes;
  bytes.reserve(source.bytes());
  for (const Piece& piece : pieces) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(piece.address);
    bytes.insert(bytes.end(), data, data + piece.bytes);
  }
  return bytes;
}

void scatter(const Body& bytes, const Layout& destination) {
  Pieces pieces;
  destination.pieces(0, bytes.size(), pieces);
  const std::uint8_t* data = bytes.data();
  for (const Piece& piece : pieces) {
    std::memcpy(reinterpret_cast<void*>(piece.address), data, piece.bytes);
    data += piece.bytes;
  }
}

std::vector<std::int64_t> sorted_blocks(const Layout& layout) {
  std::vector<std::int64_t> all;
  const BlockList* last = nullptr;
  for (const Part& part : layout.parts()) {
    if (!part.blocks || part.blocks.get() == last) continue;
    last = part.blocks.get();
    all.insert(all.end(), last->begin(), last->end());
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

}  // namespace tent
