// Stage: tests. Fuzz target: any bytes as a header, a control message or an opening. What is
// accepted must survive the journey, and stay inside its own bounds.
// Called by libFuzzer, or by replay.cpp for each file of the corpus.
#include <cstdlib>
#include <cstring>

#include "core/segments.h"
#include "core/wire.h"

namespace tent {
namespace {

void require(bool good) {
  if (!good) std::abort();
}

// What a receiver does with a target: memory comes of it that the segment has, or none.
void resolve(const Target& target) {
  constexpr std::uint64_t kBase = 1u << 20, kBytes = 1u << 16;
  static Segments* segments = [] {
    auto* made = new Segments();
    made->add({{kBase, kBytes}, {kBase + kBytes, kBytes, 1024}}, true, true, 64, 7);
    return made;
  }();
  Target open = target;
  open.segment = 1;
  open.key = 7;
  Layout found;
  if (!segments->resolve(open, Segments::Access::Write, found).ok()) return;
  const std::uint64_t bytes = found.bytes();
  Pieces pieces;
  found.pieces(bytes / 3, std::min<std::uint64_t>(bytes - bytes / 3, 4096), pieces);
  for (const Piece& piece : pieces) {
    require(piece.address >= kBase && piece.bytes <= 2 * kBytes &&
            piece.address + piece.bytes <= kBase + 2 * kBytes);
  }
}

template <class Any>
void travel(std::span<const std::uint8_t> bytes) {
  Any first, second;
  if (!decode(bytes, first)) return;
  const Body sent = encode(first);
  require(decode(sent, second));
  require(encode(second) == sent);
  resolve(first.target);
}

}  // namespace
}  // namespace tent

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace tent;
  if (size == 0) return 0;
  const std::span<const std::uint8_t> bytes(data + 1, size - 1);
  if (data[0] % 3 == 0) travel<Message>(bytes);
  if (data[0] % 3 == 1) travel<Opening>(bytes);
  if (data[0] % 3 == 2 && bytes.size() >= sizeof(FrameHeader)) {
    FrameHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    require(!well_formed(header) || header.body_bytes <= kBodyBytesMax);
  }
  return 0;
}
