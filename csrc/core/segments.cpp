// Stage: engine. Checks every remote access against the segment's key, rights, bounds and epochs.
#include "core/segments.h"

#include <algorithm>

namespace tent {

namespace {

Status refuse(std::string text) { return {Code::Access, std::move(text), ""}; }

// In a cache a part walks whole blocks by an index list, and each piece stays inside its block:
// else a revoked block could be reached through its neighbour.
bool stays_in_blocks(const Plane& plane, std::uint64_t count, const Part& part) {
  // A block may be shorter than the step: other memory lies between it and the next. The last one
  // ends with the plane.
  const std::uint64_t step = plane.block_step ? plane.block_step : plane.bytes / count;
  std::uint64_t before_last = 0;
  const bool fits =
      !__builtin_mul_overflow(step, count - 1, &before_last) && before_last <= plane.bytes;
  const std::uint64_t block_bytes = fits ? std::min(plane.bytes - before_last, step) : 0;
  if (!part.blocks || part.dims[0].stride != std::int64_t(step)) return false;
  Part inner = part;
  inner.dims.erase(inner.dims.begin());
  inner.blocks = nullptr;
  std::int64_t low = 0, high = 0;
  return part.base <= block_bytes && inner.extent(low, high) && low >= -std::int64_t(part.base) &&
         high <= std::int64_t(block_bytes - part.base);
}

Status check_blocks(const Segment& segment, const BlockList& blocks, std::uint32_t epoch) {
  for (std::int64_t block : blocks) {
    if (block < 0 || std::uint64_t(block) >= segment.block_count) {
      return refuse("block " + std::to_string(block) + " is out of range: the cache has " +
                    std::to_string(segment.block_count) + " blocks");
    }
    if (segment.block_epochs[std::size_t(block)] > epoch) {
      return refuse("block " + std::to_string(block) +
                    " was revoked after this ticket was made: ask its owner for a new ticket");
    }
  }
  return {};
}

}  // namespace

Segment& Segments::add(std::vector<Plane> planes, bool readable, bool writable,
                       std::uint64_t block_count, std::uint64_t key, Device device) {
  const SegmentId id = next_id_++;
  Segment& segment = segments_[id];
  segment.id = id;
  segment.key = key;
  segment.readable = readable;
  segment.writable = writable;
  segment.planes = std::move(planes);
  segment.block_count = block_count;
  segment.block_epochs.assign(block_count, 0);
  segment.device = device;
  return segment;
}

Segment* Segments::find(SegmentId id) {
  const auto found = segments_.find(id);
  return found == segments_.end() ? nullptr : &found->second;
}

bool Segments::remove(SegmentId id) { return segments_.erase(id) != 0; }

Status Segments::resolve(const Target& target, Access access, Layout& out) const {
  const auto found = segments_.find(target.segment);
  if (found == segments_.end() || found->second.key != target.key) {
    return refuse("the segment is closed or the ticket is stale: ask its owner for a new ticket");
  }
  const Segment& segment = found->second;
  if (access == Access::Read ? !segment.readable : !segment.writable) {
    return refuse(access == Access::Read ? "the segment may not be read: register it with "
                                           "access=\"read\" or \"read-write\""
                                         : "the segment may not be written: register it with "
                                           "access=\"write\" or \"read-write\"");
  }
  std::vector<Part> parts = target.layout.parts();
  const BlockList* checked = nullptr;  // the parts of many layers share one list
  for (Part& part : parts) {
    if (part.plane >= segment.planes.size()) {
      return refuse("plane " + std::to_string(part.plane) + " is out of range: the segment has " +
                    std::to_string(segment.planes.size()));
    }
    const Plane& plane = segment.planes[part.plane];
    if (segment.block_count != 0 && !stays_in_blocks(plane, segment.block_count, part)) {
      return refuse("a block cache is reached by block indices: use write_blocks or read_blocks");
    }
    if (segment.block_count != 0 && part.blocks.get() != checked) {
      checked = part.blocks.get();
      if (Status status = check_blocks(segment, *checked, target.epoch); !status.ok()) {
        return status;
      }
    }
    std::int64_t low, high;
    if (!part.extent(low, high) || part.base > plane.bytes) {
      return refuse("the offset is out of the segment's bounds");
    }
    const auto room_after = std::int64_t(plane.bytes - part.base);
    if (low < -std::int64_t(part.base) || high > room_after) {
      return refuse("bytes [" + std::to_string(std::int64_t(part.base) + low) + ", " +
                    std::to_string(std::int64_t(part.base) + high) +
                    ") are out of bounds: the plane has " + std::to_string(plane.bytes) + " bytes");
    }
    part.base += plane.base;
  }
  out = Layout(std::move(parts), segment.device);
  return {};
}

std::uint32_t Segments::revoke(SegmentId id, const std::vector<std::int64_t>& blocks) {
  Segment* segment = find(id);
  if (segment == nullptr) return 0;
  ++segment->epoch;
  for (std::int64_t block : blocks) {
    if (block >= 0 && std::uint64_t(block) < segment->block_count) {
      segment->block_epochs[std::size_t(block)] = segment->epoch;
    }
  }
  return segment->epoch;
}

}  // namespace tent
