// Stage: collectives. Memory for partial results. Freed blocks are kept for the next collective, up
// to a bound, because fresh pages cost more than what is done with them. Under the engine lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <utility>

namespace tent {

class Scratch {
 public:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    std::uint64_t bytes = 0;
    std::uint64_t address() const { return reinterpret_cast<std::uint64_t>(memory.get()); }
  };

  // At least `bytes`, aligned to 64; throws std::bad_alloc.
  Block take(std::uint64_t bytes);
  void give_back(Block block);

 private:
  static constexpr std::uint64_t kKeptMax = 16u << 20;  // bytes
  std::multimap<std::uint64_t, Block> kept_;            // by size
  std::uint64_t kept_bytes_ = 0;
};

}  // namespace tent
