// Stage: transport. RdmaMemory, what outlives the transfers that used it; see memory.h.
#include "transports/rdma/memory.h"

namespace tent {

void RdmaMemory::keep(std::uint64_t storage, const Piece& memory) {
  const MemoryOwner owner{MemoryOwner::Kind::Storage, storage};
  if (!wanted || kept_bytes_max == 0 || memory.bytes == 0 || owners_.contains(owner)) return;
  // The slices of a transfer that runs would find the new range, which is not theirs to hold.
  if (is_held(memory)) return;
  Range* range = add(memory);
  range->owners = 1;
  range->storage = storage;
  range->kept = kept_.insert(kept_.end(), range);
  owners_[owner] = {range};
}

void RdmaMemory::unlist(Range& range) {
  kept_bytes_ -= range.registered_bytes;
  kept_.erase(range.kept);
  range.storage = 0;
}

bool RdmaMemory::is_held(const Piece& memory) {
  if (around(memory.address, memory.address + 1) != nullptr) return true;
  const auto next = ranges_.lower_bound(memory.address);
  return next != ranges_.end() && next->first < memory.address + memory.bytes;
}

void RdmaMemory::give_up_kept(const Piece& memory) {
  const std::uint64_t end = memory.address + memory.bytes;
  for (auto at = kept_.begin(); at != kept_.end();) {
    const Range& range = **at++;
    if (range.begin < end && memory.address < range.end) forget(range.storage);
  }
}

void RdmaMemory::keep_nothing() {
  kept_bytes_max = 0;
  while (!kept_.empty()) forget(kept_.front()->storage);
}

void RdmaMemory::shed(std::uint64_t bytes, std::size_t count) {
  for (auto at = kept_.begin(); at != kept_.end();) {
    if (kept_bytes_ <= bytes && kept_.size() <= count) return;
    const Range& range = **at++;
    if (range.owners == 1) forget(range.storage);
  }
}

}  // namespace tent
