// Stage: collectives. Reused memory: see the header.
#include "collectives/scratch.h"

#include <algorithm>
#include <bit>
#include <new>

namespace tent {

Scratch::Block Scratch::take(std::uint64_t bytes) {
  if (bytes == 0) return {};
  // Powers of two, so that a kept block fits many callers and wastes at most half.
  bytes = std::bit_ceil(std::max<std::uint64_t>(bytes, 64));
  if (auto found = kept_.find(bytes); found != kept_.end()) {
    Block block = std::move(found->second);
    kept_.erase(found);
    kept_bytes_ -= bytes;
    return block;
  }
  Block block;
  block.memory.reset(std::aligned_alloc(64, bytes));
  if (block.memory == nullptr) throw std::bad_alloc();
  block.bytes = bytes;
  return block;
}

void Scratch::give_back(Block block) {
  if (block.bytes == 0 || kept_bytes_ + block.bytes > kKeptMax) return;
  kept_bytes_ += block.bytes;
  const std::uint64_t bytes = block.bytes;
  kept_.emplace(bytes, std::move(block));
}

}  // namespace tent
