// Stage: transport. See region_table.h.
#include "transports/region_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "transports/sealed_memory.h"

namespace tent {

Status RegionTable::add(const Region& region) {
  if (region.address == 0 || region.address > UINT64_MAX - region.bytes) {
    return failed("a region must lie in this process's memory");
  }
  std::uint64_t free = region.bytes;
  if (find(region.address, free) != nullptr || free < region.bytes) {
    return failed("this shared memory is registered already");
  }
  const Status sealed = seal_region(region.fd);
  if (!sealed.ok()) return sealed;
  Descriptor memory = reopen_read_only(region.fd);
  if (!memory) return failed(errno_text("shared memory cannot be opened through /proc for peers"));
  by_address_[region.address] =
      OwnRegion{region.id, region.address, region.bytes, std::move(memory)};
  return {};
}

bool RegionTable::remove(std::uint64_t id) {
  return std::erase_if(by_address_, [id](const auto& entry) { return entry.second.id == id; }) > 0;
}

const OwnRegion* RegionTable::find(std::uint64_t address, std::uint64_t& bytes) const {
  const auto next = by_address_.upper_bound(address);
  if (next != by_address_.begin()) {
    const OwnRegion& region = std::prev(next)->second;
    const std::uint64_t offset = address - region.address;
    if (offset < region.bytes) {
      bytes = std::min(bytes, region.bytes - offset);
      return &region;
    }
  }
  if (next != by_address_.end()) bytes = std::min(bytes, next->first - address);
  return nullptr;
}

Status PeerRegions::add(std::uint64_t id, int memory, std::uint64_t bytes) {
  if (mapped_.size() >= kMappedRegionsMax) return failed("the peer has sent too many regions");
  Mapping mapping;
  const Status status = map_sealed(memory, bytes, PROT_READ, mapping);
  if (!status.ok()) return status;
  // Huge pages where the memory has them; elsewhere this changes nothing.
  static_cast<void>(::madvise(mapping.data(), bytes, MADV_HUGEPAGE));
  mapped_[id] = std::move(mapping);
  return {};
}

const std::uint8_t* PeerRegions::find(std::uint64_t id, std::uint64_t offset,
                                      std::uint64_t bytes) const {
  const auto found = mapped_.find(id);
  if (found == mapped_.end()) return nullptr;
  const Mapping& mapping = found->second;
  if (offset > mapping.bytes() || bytes > mapping.bytes() - offset) return nullptr;
  return mapping.data() + offset;
}

}  // namespace tent
