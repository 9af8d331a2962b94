// Stage: collectives. Algorithms for large buffers, along the ring rank -> rank + 1: every rank
// sends and receives each byte about once. Called by plan() alone; pure. Buffers go in rounds of a
// few chunks, so scratch memory is bounded by Tuning::chunk_bytes however large they are.
#pragma once

#include "collectives/algorithms.h"

namespace tent {

// Piece r of the sum is complete at rank r after going round once; then the pieces go round again,
// to every output (all_reduce), to the root (reduce), or nowhere (reduce_scatter).
void plan_all_reduce_ring(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);
void plan_reduce_ring(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);
void plan_reduce_scatter_ring(const CollectiveShape& shape, const Tuning& tuning, Schedule& out);
void plan_all_gather_ring(const CollectiveShape& shape, Schedule& out);

}  // namespace tent
