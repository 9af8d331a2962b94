// Stage: transport. The memory of this process that peers may map, by address; and the regions of
// one peer that are mapped here, by number. Engine lock held.
// What always holds: own regions do not overlap and cannot shrink; a peer's are mapped read-only.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>

#include "transports/descriptor.h"
#include "transports/transport.h"

namespace tent {

// As many of a peer's regions are mapped on a link; the bytes of further ones are staged.
inline constexpr std::size_t kMappedRegionsMax = 4096;

struct OwnRegion {
  std::uint64_t id = 0, address = 0, bytes = 0;
  Descriptor memory;  // cannot be mapped for writing
};

class RegionTable {
 public:
  Status add(const Region& region);
  bool remove(std::uint64_t id);
  // The region of `address`, or null; `bytes` is cut to what lies in it, or before the next one.
  const OwnRegion* find(std::uint64_t address, std::uint64_t& bytes) const;

 private:
  std::map<std::uint64_t, OwnRegion> by_address_;
};

class PeerRegions {
 public:
  bool has(std::uint64_t id) const { return mapped_.contains(id); }
  Status add(std::uint64_t id, int memory, std::uint64_t bytes);
  void remove(std::uint64_t id) { mapped_.erase(id); }
  // Null when the range is not inside a region of this number.
  const std::uint8_t* find(std::uint64_t id, std::uint64_t offset, std::uint64_t bytes) const;

 private:
  std::unordered_map<std::uint64_t, Mapping> mapped_;
};

}  // namespace tent
