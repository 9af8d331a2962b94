// Stage: tests. One process's memory in the simulator: pieces of it are handed out, filled with a
// pattern that tells every transfer and every place in it apart, and poisoned the moment they are
// free. Whatever is free must still hold the poison when it is handed out again, and at the end.
// Owned by Process; one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/types.h"

namespace tent::sim {

// The pattern of a transfer: a window of one random table.
using Pattern = std::uint64_t;
const std::uint8_t* pattern_bytes(Pattern pattern, std::uint64_t offset);
inline constexpr std::uint64_t kPatternBytesMax = 256u << 10;  // the longest line of bytes

void fill(const Layout& layout, Pattern pattern);
// Whether the line bytes [offset, offset + length) lie in memory as the pattern says.
bool holds(const Layout& layout, Pattern pattern);

void poison(std::uint64_t address, std::uint64_t bytes);
bool poisoned(std::uint64_t address, std::uint64_t bytes);
void poison(const Layout& layout);

class Arena {
 public:
  void reset(std::uint64_t bytes);  // everything free
  bool contains(std::uint64_t address, std::uint64_t bytes) const;
  std::uint64_t offset(std::uint64_t address) const;  // from the arena's start

  // The lowest free span with room, between guards of poison; 0 when there is none. `*clean`
  // becomes false when somebody had written there while it was free.
  std::uint64_t take(std::uint64_t bytes, bool* clean);
  // The caller has poisoned it. False: something beside the transfer's own bytes was written.
  bool give_back(std::uint64_t address, std::uint64_t bytes);
  // All that is free still holds the poison.
  bool clean() const;

 private:
  struct Span {
    std::uint64_t low, high;
  };
  std::vector<std::uint8_t> bytes_;
  std::uint64_t size_ = 0;
  std::vector<Span> free_;  // sorted, never touching
};

}  // namespace tent::sim
