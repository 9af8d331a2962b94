// Stage: device. Host memory that GPUs copy from and to at full speed (page-locked), in equal
// slots: slices on their way between a GPU and a transport lie here. Engine lock held. What always
// holds: no more than `bound` bytes are in use, but for one slice that must have memory so that its
// link can go on; memory that was taken stays until it is given back.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/layout.h"
#include "drivers/cuda.h"

namespace tent {

class PinnedArena {
 public:
  static constexpr std::uint64_t kSlotBytes = 128u << 10;
  static constexpr std::uint64_t kBlockBytes = 16u << 20;

  using Grown = std::function<void(const Piece& block)>;
  // `grown` is told of memory that is added.
  explicit PinnedArena(std::uint64_t bound, std::uint64_t block_bytes = kBlockBytes,
                       Grown grown = {})
      : bound_(bound), block_bytes_(block_bytes), grown_(std::move(grown)) {}
  ~PinnedArena();
  PinnedArena(const PinnedArena&) = delete;
  PinnedArena& operator=(const PinnedArena&) = delete;

  // Page-locks the first memory; `gpu` must live as long as the arena.
  Status open(const Gpu& gpu);
  // Appends memory for `bytes`. False: there is none now. With `must`, one slice's worth beyond the
  // bound is given, and false means that the system has none: see why().
  bool take(std::uint64_t bytes, bool must, Pieces& out);
  void give(const Pieces& memory);
  const std::string& why() const { return why_; }
  std::uint64_t in_use() const { return in_use_; }
  std::uint64_t page_locked() const { return blocks_.size() * block_bytes_; }
  // Some memory of the arena, for asking whether a transport reaches such.
  const Layout& layout() const { return layout_; }

 private:
  bool grow();

  const std::uint64_t bound_, block_bytes_;
  const Grown grown_;
  const Gpu* gpu_ = nullptr;
  std::vector<void*> blocks_;
  std::set<std::uint64_t> free_;  // addresses of slots: lowest first, so that slices lie together
  std::uint64_t in_use_ = 0;
  Layout layout_;
  std::string why_;
};

}  // namespace tent
