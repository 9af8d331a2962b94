// Stage: collectives. Algorithms whose messages follow a binomial tree, or the rounds of one: few
// messages one after the other. Called by plan() alone; pure. In all of them, ranks are counted
// from the root, and rank v > 0 hangs below v without its highest bit.
#pragma once

#include "collectives/algorithms.h"

namespace tent {

void plan_broadcast(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);
// Copies the whole buffer at every step: for small ones.
void plan_reduce_tree(const CollectiveShape& shape, Schedule& out);
void plan_barrier(const CollectiveShape& shape, Schedule& out);

}  // namespace tent
