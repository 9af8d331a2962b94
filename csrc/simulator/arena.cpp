// Stage: tests. See arena.h.
#include "simulator/arena.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "simulator/random.h"

namespace tent::sim {
namespace {

constexpr std::uint8_t kPoison = 0xa5;
constexpr std::uint64_t kGrain = 16;  // also the guard behind every span
constexpr std::uint64_t kTableBytes = 2 * kPatternBytesMax;

const std::vector<std::uint8_t>& table() {
  static const std::vector<std::uint8_t> made = [] {
    std::vector<std::uint8_t> bytes(kTableBytes);
    Random random(1);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random.next());
    return bytes;
  }();
  return made;
}

std::uint64_t taken(std::uint64_t bytes) { return (bytes + kGrain - 1) / kGrain * kGrain + kGrain; }

std::uint8_t* at(std::uint64_t address) { return reinterpret_cast<std::uint8_t*>(address); }

}  // namespace

const std::uint8_t* pattern_bytes(Pattern pattern, std::uint64_t offset) {
  return table().data() + pattern * 0x9e3779b97f4a7c15ull % kPatternBytesMax + offset;
}

void fill(const Layout& layout, Pattern pattern) {
  thread_local Pieces pieces;
  pieces.clear();
  layout.pieces(0, layout.bytes(), pieces);
  std::uint64_t offset = 0;
  for (const Piece& piece : pieces) {
    std::memcpy(at(piece.address), pattern_bytes(pattern, offset), piece.bytes);
    offset += piece.bytes;
  }
}

bool holds(const Layout& layout, Pattern pattern) {
  thread_local Pieces pieces;
  pieces.clear();
  layout.pieces(0, layout.bytes(), pieces);
  std::uint64_t offset = 0;
  for (const Piece& piece : pieces) {
    if (std::memcmp(at(piece.address), pattern_bytes(pattern, offset), piece.bytes) != 0) {
      return false;
    }
    offset += piece.bytes;
  }
  return true;
}

void poison(std::uint64_t address, std::uint64_t bytes) {
  std::memset(at(address), kPoison, bytes);
}

bool poisoned(std::uint64_t address, std::uint64_t bytes) {
  const std::uint8_t* p = at(address);
  return bytes == 0 || (p[0] == kPoison && std::memcmp(p, p + 1, bytes - 1) == 0);
}

void poison(const Layout& layout) {
  thread_local Pieces pieces;
  pieces.clear();
  layout.pieces(0, layout.bytes(), pieces);
  for (const Piece& piece : pieces) poison(piece.address, piece.bytes);
}

void Arena::reset(std::uint64_t bytes) {
  size_ = bytes;
  if (bytes_.size() < bytes) bytes_.resize(bytes);
  const std::uint64_t low = reinterpret_cast<std::uint64_t>(bytes_.data());
  free_.assign(1, {low, low + size_});
  poison(low, size_);
}

bool Arena::contains(std::uint64_t address, std::uint64_t bytes) const {
  const std::uint64_t low = reinterpret_cast<std::uint64_t>(bytes_.data());
  return address >= low && bytes <= size_ && address - low <= size_ - bytes;
}

std::uint64_t Arena::offset(std::uint64_t address) const {
  return address - reinterpret_cast<std::uint64_t>(bytes_.data());
}

std::uint64_t Arena::take(std::uint64_t bytes, bool* clean) {
  const std::uint64_t wanted = taken(bytes);
  for (std::size_t i = 0; i < free_.size(); ++i) {
    if (free_[i].high - free_[i].low < wanted) continue;
    const std::uint64_t address = free_[i].low;
    free_[i].low += wanted;
    if (free_[i].low == free_[i].high) free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
    *clean = poisoned(address, wanted);
    return address;
  }
  return 0;
}

bool Arena::give_back(std::uint64_t address, std::uint64_t bytes) {
  const Span span{address, address + taken(bytes)};
  auto after = std::lower_bound(free_.begin(), free_.end(), span.low,
                                [](const Span& s, std::uint64_t low) { return s.low < low; });
  after = free_.insert(after, span);
  if (after + 1 != free_.end() && after->high == (after + 1)->low) {
    after->high = (after + 1)->high;
    free_.erase(after + 1);
  }
  if (after != free_.begin() && (after - 1)->high == after->low) {
    (after - 1)->high = after->high;
    free_.erase(after);
  }
  return poisoned(span.low, span.high - span.low);
}

bool Arena::clean() const {
  return std::all_of(free_.begin(), free_.end(),
                     [](const Span& s) { return poisoned(s.low, s.high - s.low); });
}

}  // namespace tent::sim
