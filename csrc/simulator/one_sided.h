// Stage: tests. The one-sided half of the workload: reads and writes of exported memory, forbidden
// ones among them, and owners who take their memory back and use it again at once.
// Free functions on World; one thread.
#pragma once

#include "core/node.h"
#include "simulator/tracked.h"

namespace tent::sim {

struct World;

// A read or write between `from` and memory that `owner` exports; false: none is free.
bool draw_one_sided(World& world, Request::Op op, bool cache, std::uint32_t from,
                    std::uint32_t owner, std::uint64_t bytes, Tracked& tracked, Request& request);
// Makes it one that must be refused: another key, no rights, out of bounds, a revoked block.
void forbid(World& world, Tracked& tracked, Request& request);
void revoke_blocks(World& world);
void close_and_reopen(World& world);

}  // namespace tent::sim
