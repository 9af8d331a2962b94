// Stage: tests. See exported.h.
#include "simulator/exported.h"

#include <algorithm>
#include <utility>

namespace tent::sim {

std::vector<std::uint32_t> Exported::take(std::uint32_t wanted, Random& random) {
  std::vector<std::uint32_t> taken;
  const std::uint32_t start = static_cast<std::uint32_t>(random.below(units()));
  for (std::uint32_t i = 0; i < units() && taken.size() < wanted; ++i) {
    const std::uint32_t unit = (start + i) % units();
    if (unit == 0 && !cache && !taken.empty()) break;
    if (busy[unit] == 0) {
      taken.push_back(unit);
    } else if (!cache && !taken.empty()) {
      break;
    }
  }
  if (cache) {  // any order will do: make it a hard one
    for (std::size_t i = taken.size(); i > 1; --i) std::swap(taken[i - 1], taken[random.below(i)]);
  }
  for (std::uint32_t unit : taken) busy[unit] = 1;
  return taken;
}

Layout Exported::offsets(const std::vector<std::uint32_t>& taken, std::uint64_t bytes,
                         Random& random) const {
  std::vector<Part> parts;
  if (cache) {
    auto blocks =
        std::make_shared<const BlockList>(std::vector<std::int64_t>(taken.begin(), taken.end()));
    for (std::uint32_t plane = 0; plane < planes.size(); ++plane) {
      Part part;
      part.plane = plane;
      part.piece_bytes = unit_bytes;
      part.dims = {{taken.size(), static_cast<std::int64_t>(unit_bytes)}};
      part.blocks = blocks;
      parts.push_back(std::move(part));
    }
    return Layout(std::move(parts));
  }
  const std::uint64_t room = taken.size() * unit_bytes;
  const std::uint64_t low = taken.front() * unit_bytes;
  if (bytes % 64 == 0 && bytes * 2 <= room && random.chance(0.5)) {  // every other 64 bytes
    Part part;
    part.base = low;
    part.piece_bytes = 64;
    part.dims = {{bytes / 64, 128}};
    parts.push_back(std::move(part));
  } else {
    Part part;
    part.base = low + random.below(room - bytes + 1);
    part.piece_bytes = bytes;
    parts.push_back(std::move(part));
  }
  return Layout(std::move(parts));
}

Layout Exported::addresses(const Layout& offsets) const {
  std::vector<Part> parts = offsets.parts();
  for (Part& part : parts) {
    part.base += planes[part.plane].base;
    part.plane = 0;
  }
  return Layout(std::move(parts));
}

void Exported::poison_units(const std::vector<std::uint32_t>& taken) const {
  for (std::uint32_t unit : taken) {
    for (const Plane& plane : planes) poison(plane.base + unit * unit_bytes, unit_bytes);
  }
}

bool Exported::units_poisoned(const std::vector<std::uint32_t>& taken) const {
  return std::all_of(taken.begin(), taken.end(), [&](std::uint32_t unit) {
    return std::all_of(planes.begin(), planes.end(), [&](const Plane& plane) {
      return poisoned(plane.base + unit * unit_bytes, unit_bytes);
    });
  });
}

}  // namespace tent::sim
