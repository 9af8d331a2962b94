// Stage: collectives. Chooses an algorithm for a collective and writes this rank's schedule; the
// one place where sizes decide. Called by the executor (under the engine lock), by tests and
// simulators. Pure: equal calls on all ranks give schedules that fit together, whatever the order
// of delivery.
//
// What each rank passes (bytes of its buffers, by rank where there is one per rank):
//   broadcast       root: one input; others: one output
//   all_reduce      one input, one output (may be the same memory)
//   reduce          one input; root: one output too
//   all_gather      one input, an output per rank (the own one may be the input's memory)
//   gather          one input; root: an output per rank
//   scatter         root: an input per rank; all: one output
//   reduce_scatter  an input per rank, one output (may be the own input's memory)
//   all_to_all      an input and an output per rank
//   barrier         nothing
#pragma once

#include <cstdint>
#include <vector>

#include "collectives/schedule.h"
#include "core/types.h"
#include "engine/c_api.h"

namespace tent {

struct CollectiveShape {
  std::int32_t kind = TENT_BARRIER, reduce = TENT_SUM, dtype = TENT_U8;
  std::int32_t root = 0, rank = 0, size = 1;
  std::vector<std::uint64_t> inputs, outputs;  // bytes
  bool operator==(const CollectiveShape&) const = default;
};

struct Tuning {
  // Up to here latency decides: the fewest messages one after the other. Above: the fewest bytes.
  std::uint64_t small_bytes = 32u << 10;
  // Large buffers go in chunks of this size, so that moving and reducing overlap. A multiple of 64.
  std::uint64_t chunk_bytes = 512u << 10;
  // Up to here a send reads a copy of the caller's memory, and the caller need not wait for it.
  std::uint64_t buffered_bytes = 8u << 10;
  std::int32_t direct_ranks = 8;  // everybody sends to everybody up to this many ranks
};

const char* collective_name(std::int32_t kind);

// Failed, with the reason, when the call makes no sense on this rank.
Status plan(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);

}  // namespace tent
