// Stage: collectives. The choice of an algorithm: see the header.
#include "collectives/algorithms.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <string>

#include "collectives/direct.h"
#include "collectives/reduce.h"
#include "collectives/rings.h"
#include "collectives/trees.h"

namespace tent {

namespace {

constexpr std::uint64_t kScratchMax = 1u << 20;  // of algorithms that hold everybody's part at once

constexpr const char* kNames[] = {"broadcast",      "all_reduce", "reduce",
                                  "all_gather",     "gather",     "scatter",
                                  "reduce_scatter", "all_to_all", "barrier"};
static_assert(std::size(kNames) == TENT_BARRIER + 1);

std::string check_counts(const CollectiveShape& shape) {
  const bool is_root = shape.rank == shape.root;
  const auto ranks = std::size_t(shape.size);
  std::size_t inputs = 1, outputs = 1;
  switch (shape.kind) {
    case TENT_BROADCAST:
      inputs = is_root ? 1 : 0;
      outputs = is_root ? 0 : 1;
      break;
    case TENT_REDUCE:
      outputs = is_root ? 1 : 0;
      break;
    case TENT_ALL_GATHER:
      outputs = ranks;
      break;
    case TENT_GATHER:
      outputs = is_root ? ranks : 0;
      break;
    case TENT_SCATTER:
      inputs = is_root ? ranks : 0;
      break;
    case TENT_REDUCE_SCATTER:
      inputs = ranks;
      break;
    case TENT_ALL_TO_ALL:
      inputs = outputs = ranks;
      break;
    case TENT_BARRIER:
      inputs = outputs = 0;
      break;
    default:
      break;
  }
  if (shape.inputs.size() == inputs && shape.outputs.size() == outputs) return "";
  return "needs " + std::to_string(inputs) + " input and " + std::to_string(outputs) +
         " output buffers, not " + std::to_string(shape.inputs.size()) + " and " +
         std::to_string(shape.outputs.size());
}

// The input and the output that this rank fills for itself must be of equal size.
std::string check_sizes(const CollectiveShape& shape) {
  if (shape.inputs.empty() || shape.outputs.empty()) return "";
  const auto own = std::size_t(shape.rank);
  const std::uint64_t input = shape.inputs.size() == 1 ? shape.inputs[0] : shape.inputs[own];
  const std::uint64_t output = shape.outputs.size() == 1 ? shape.outputs[0] : shape.outputs[own];
  if (input == output) return "";
  return "this rank's input has " + std::to_string(input) + " bytes and its output " +
         std::to_string(output) + ": they must be equal";
}

std::string check_reduction(const CollectiveShape& shape) {
  const bool reduces = shape.kind == TENT_ALL_REDUCE || shape.kind == TENT_REDUCE ||
                       shape.kind == TENT_REDUCE_SCATTER;
  if (!reduces) return "";
  if (std::string why = why_not(shape.reduce, shape.dtype); !why.empty()) return why;
  for (std::uint64_t bytes : shape.inputs)
    if (bytes % element_bytes(shape.dtype) != 0)
      return std::to_string(bytes) + " bytes are no whole number of " + dtype_name(shape.dtype);
  return "";
}

std::string check(const CollectiveShape& shape) {
  if (shape.size < 1 || shape.rank < 0 || shape.rank >= shape.size)
    return "rank " + std::to_string(shape.rank) + " is not in 0.." + std::to_string(shape.size - 1);
  if (shape.root < 0 || shape.root >= shape.size)
    return "invalid root rank: " + std::to_string(shape.root);
  for (auto* test : {check_counts, check_sizes, check_reduction})
    if (std::string why = test(shape); !why.empty()) return why;
  return "";
}

void plan_alone(const CollectiveShape& shape, Schedule& out) {
  if (!shape.inputs.empty() && !shape.outputs.empty())
    out.copy({Space::Output}, {Space::Input}, shape.inputs[0]);
}

void plan_all_gather(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  const std::uint64_t largest = *std::max_element(shape.outputs.begin(), shape.outputs.end());
  const std::uint64_t total =
      std::accumulate(shape.outputs.begin(), shape.outputs.end(), std::uint64_t(0));
  if (largest > tuning.small_bytes || total > kScratchMax) return plan_all_gather_ring(shape, out);
  if (shape.size <= tuning.direct_ranks) return plan_all_gather_direct(shape, tuning, out);
  plan_all_gather_doubling(shape, out);
}

void plan_reduce_scatter(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  const std::uint64_t largest = *std::max_element(shape.inputs.begin(), shape.inputs.end());
  // Every rank decides alike: all know all sizes.
  if (largest <= tuning.small_bytes && largest * std::uint64_t(shape.size) <= kScratchMax)
    return plan_reduce_scatter_direct(shape, tuning, out);
  plan_reduce_scatter_ring(shape, tuning, out);
}

}  // namespace

const char* collective_name(std::int32_t kind) {
  return kind >= 0 && kind <= TENT_BARRIER ? kNames[kind] : "unknown collective";
}

Status plan(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  out = Schedule{};
  if (shape.kind < 0 || shape.kind > TENT_BARRIER)
    return {Code::Failed, "collective " + std::to_string(shape.kind) + " is not known", ""};
  if (std::string why = check(shape); !why.empty())
    return {Code::Failed, std::string(collective_name(shape.kind)) + ": " + why, ""};
  out.reduce = shape.reduce;
  out.dtype = shape.dtype;
  out.ranks = shape.size;
  if (shape.size == 1) {
    plan_alone(shape, out);
    return {};
  }
  const bool is_small = shape.inputs.empty() || shape.inputs[0] <= tuning.small_bytes;
  switch (shape.kind) {
    case TENT_BROADCAST:
      plan_broadcast(shape, tuning, out);
      break;
    case TENT_ALL_REDUCE:
      if (is_small)
        plan_all_reduce_doubling(shape, out);
      else
        plan_all_reduce_ring(shape, tuning, out);
      break;
    case TENT_REDUCE:
      if (is_small)
        plan_reduce_tree(shape, out);
      else
        plan_reduce_ring(shape, tuning, out);
      break;
    case TENT_ALL_GATHER:
      plan_all_gather(shape, tuning, out);
      break;
    case TENT_GATHER:
      plan_gather(shape, tuning, out);
      break;
    case TENT_SCATTER:
      plan_scatter(shape, tuning, out);
      break;
    case TENT_REDUCE_SCATTER:
      plan_reduce_scatter(shape, tuning, out);
      break;
    case TENT_ALL_TO_ALL:
      plan_all_to_all(shape, tuning, out);
      break;
    default:
      plan_barrier(shape, out);
      break;
  }
  return {};
}

}  // namespace tent
