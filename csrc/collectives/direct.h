// Stage: collectives. Algorithms in which ranks talk to each other directly: pairwise exchanges,
// doubling distances, and everybody to everybody. Called by plan() alone; pure.
#pragma once

#include "collectives/algorithms.h"

namespace tent {

// Recursive doubling; ranks beyond a power of two hand their part to a neighbour first.
void plan_all_reduce_doubling(const CollectiveShape& shape, Schedule& out);
void plan_all_gather_direct(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);
// Bruck's algorithm: doubling distances, all data through scratch memory.
void plan_all_gather_doubling(const CollectiveShape& shape, Schedule& out);
void plan_gather(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);
void plan_scatter(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);
// Each rank receives all parts of its piece and adds them in the order of ranks.
void plan_reduce_scatter_direct(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);
void plan_all_to_all(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);

}  // namespace tent
