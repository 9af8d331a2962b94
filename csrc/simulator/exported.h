// Stage: tests. The segments that a simulated process offers, and which parts of them are taken by
// whom. Memory is handed out in units: the blocks of a cache, or grains of a plain segment.
// Owned by Process; one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "core/node.h"
#include "simulator/arena.h"
#include "simulator/random.h"

namespace tent::sim {

struct Exported {
  SegmentId id = 0;
  std::uint64_t key = 0;
  bool readable = true, writable = true, open = false;
  bool cache = false;
  std::vector<Plane> planes;
  std::uint64_t unit_bytes = 0;
  std::vector<std::uint8_t> busy;         // per unit: a transfer uses it
  std::vector<std::uint32_t> revoked_at;  // per unit: the epoch that revoked it last
  std::uint32_t epoch = 0;
  bool closing = false;  // closed, but a reader on this host may still be copying out of it

  std::uint32_t units() const { return static_cast<std::uint32_t>(busy.size()); }
  // Up to `wanted` free units: neighbours in a plain segment, any in a cache. Empty: none is free.
  std::vector<std::uint32_t> take(std::uint32_t wanted, Random& random);
  // The units' bytes as the caller of a remote transfer names them: offsets in the planes.
  Layout offsets(const std::vector<std::uint32_t>& taken, std::uint64_t bytes,
                 Random& random) const;
  // The same bytes as addresses, computed here and not by the code under test.
  Layout addresses(const Layout& offsets) const;
  void poison_units(const std::vector<std::uint32_t>& taken) const;
  bool units_poisoned(const std::vector<std::uint32_t>& taken) const;
};

}  // namespace tent::sim
