// Stage: device. See arena.h.
#include "device/arena.h"

#include <sys/mman.h>

#include <algorithm>

namespace tent {
namespace {

constexpr std::size_t kHugePage = 2u << 20;

std::uint64_t slots_for(std::uint64_t bytes) {
  return (bytes + PinnedArena::kSlotBytes - 1) / PinnedArena::kSlotBytes;
}

// Aligned to the huge page, so that the kernel can use such.
void* map_block(std::size_t bytes) {
  const std::size_t reserved = bytes + kHugePage;
  void* start =
      ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<std::size_t>(start);
  const std::size_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned != begin) ::munmap(start, aligned - begin);
  ::munmap(reinterpret_cast<void*>(aligned + bytes), begin + kHugePage - aligned);
  ::madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);  // without, only slower
  return reinterpret_cast<void*>(aligned);
}

}  // namespace

PinnedArena::~PinnedArena() {
  if (gpu_ == nullptr) return;
  const OnGpu on(*gpu_);
  for (void* block : blocks_) {
    gpu_->api().host_unregister(block);
    ::munmap(block, block_bytes_);
  }
}

Status PinnedArena::open(const Gpu& gpu) {
  if (gpu_ != nullptr) return {};
  gpu_ = &gpu;
  if (grow()) return {};
  gpu_ = nullptr;
  return {Code::Failed, why_, ""};
}

bool PinnedArena::grow() {
  void* block = map_block(block_bytes_);
  Status status;
  if (block == nullptr) {
    status = {Code::Failed, "the system has no memory", ""};
  } else {
    const OnGpu on(*gpu_);
    status = gpu_->cuda().check(
        gpu_->api().host_register(block, block_bytes_, kCudaHostRegisterPortable), "page-locking");
    if (!status.ok()) ::munmap(block, block_bytes_);
  }
  if (!status.ok()) {
    why_ = "out of page-locked host memory for copies from and to GPUs (" + status.text + "; " +
           std::to_string(page_locked() >> 20) + " MiB are in use): free some, or raise ulimit -l";
    return false;
  }
  blocks_.push_back(block);
  const auto start = reinterpret_cast<std::uint64_t>(block);
  for (std::uint64_t at = 0; at < block_bytes_; at += kSlotBytes) free_.insert(start + at);
  if (grown_) grown_({start, block_bytes_});
  if (layout_.bytes() == 0) layout_ = Layout::contiguous(start, block_bytes_);
  return true;
}

bool PinnedArena::take(std::uint64_t bytes, bool must, Pieces& out) {
  const std::uint64_t slots = slots_for(bytes);
  if (!must && in_use_ + slots * kSlotBytes > bound_) return false;
  while (free_.size() < slots) {
    if (!grow()) return false;
  }
  const std::size_t first = out.size();
  for (std::uint64_t left = bytes; left > 0;) {
    const std::uint64_t slot = *free_.begin(), taken = std::min(left, kSlotBytes);
    free_.erase(free_.begin());
    if (out.size() > first && out.back().address + out.back().bytes == slot) {
      out.back().bytes += taken;
    } else {
      out.push_back({slot, taken});
    }
    left -= taken;
  }
  in_use_ += slots * kSlotBytes;
  return true;
}

void PinnedArena::give(const Pieces& memory) {
  for (const Piece& piece : memory) {
    for (std::uint64_t at = 0; at < piece.bytes; at += kSlotBytes) {
      free_.insert(piece.address + at);
      in_use_ -= kSlotBytes;
    }
  }
}

}  // namespace tent
