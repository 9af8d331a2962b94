// Stage: collectives. Binomial trees: see the header.
#include "collectives/trees.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace tent {

namespace {

constexpr std::uint64_t kChunksAhead = 4;  // of a pipelined broadcast, per neighbour
constexpr std::uint64_t kChunksPerStep = 8;

struct Tree {  // one rank's neighbours
  std::int32_t parent = -1;
  std::vector<std::int32_t> children;  // the one with the largest subtree last
};

Tree tree_of(const CollectiveShape& shape) {
  const auto size = std::uint32_t(shape.size);
  const auto from_root = std::uint32_t((shape.rank - shape.root + shape.size) % shape.size);
  const auto real = [&](std::uint32_t v) { return std::int32_t((v + shape.root) % size); };
  Tree tree;
  if (from_root > 0) tree.parent = real(from_root - std::bit_floor(from_root));
  const std::uint32_t first = from_root == 0 ? 1 : std::bit_floor(from_root) * 2;
  for (std::uint32_t bit = first; from_root + bit < size; bit *= 2)
    tree.children.push_back(real(from_root + bit));
  return tree;
}

// The data passes through scratch memory: forwarding does not keep the caller waiting.
void broadcast_buffered(const CollectiveShape& shape, const Tree& tree, Schedule& out) {
  const bool is_root = tree.parent < 0;
  const std::uint64_t bytes = is_root ? shape.inputs[0] : shape.outputs[0];
  const Place held = out.scratch(bytes);
  std::uint32_t ready;
  if (is_root) {
    ready = out.copy(held, {Space::Input}, bytes);
  } else {
    ready = out.recv(tree.parent, 0, held, bytes);
    out.copy({Space::Output}, held, bytes, {ready});
  }
  for (std::int32_t child : tree.children) out.send(child, 0, held, bytes, {ready});
}

// Chunks are there for those that pass them on: more than eight for each step down the tree save
// less time than each message costs, and where nobody passes anything on there is one.
std::uint64_t chunk_of(const CollectiveShape& shape, std::uint64_t bytes, std::uint64_t least) {
  const auto depth = std::uint64_t(std::bit_width(std::uint32_t(shape.size - 1)));
  if (depth <= 1) return bytes;
  const std::uint64_t wanted = (bytes / (kChunksPerStep * depth) + 63) / 64 * 64;
  return std::max(wanted, least);
}

void broadcast_chunked(const CollectiveShape& shape, const Tuning& tuning, const Tree& tree,
                       Schedule& out) {
  const bool is_root = tree.parent < 0;
  const std::uint64_t bytes = is_root ? shape.inputs[0] : shape.outputs[0];
  const Place base{is_root ? Space::Input : Space::Output};
  const std::uint64_t chunk = chunk_of(shape, bytes, tuning.chunk_bytes);
  // Per neighbour, the step that a new one waits for: the one kChunksAhead chunks before it.
  std::vector<std::vector<std::uint32_t>> ring(tree.children.size() + 1,
                                               std::vector(kChunksAhead, kNoStep));
  std::uint32_t channel = 0;
  for (std::uint64_t at = 0; at < bytes; at += chunk, ++channel) {
    const std::uint64_t length = std::min(chunk, bytes - at);
    const std::size_t turn = channel % kChunksAhead;
    std::uint32_t ready = kNoStep;
    if (!is_root)
      ready = ring.back()[turn] =
          out.recv(tree.parent, channel, base + at, length, {ring.back()[turn]});
    for (std::size_t i = 0; i < tree.children.size(); ++i)
      ring[i][turn] =
          out.send(tree.children[i], channel, base + at, length, {ready, ring[i][turn]});
  }
}

}  // namespace

void plan_broadcast(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  const Tree tree = tree_of(shape);
  const std::uint64_t bytes = tree.parent < 0 ? shape.inputs[0] : shape.outputs[0];
  if (bytes <= tuning.buffered_bytes) return broadcast_buffered(shape, tree, out);
  broadcast_chunked(shape, tuning, tree, out);
}

void plan_reduce_tree(const CollectiveShape& shape, Schedule& out) {
  const Tree tree = tree_of(shape);
  const std::uint64_t bytes = shape.inputs[0];
  const bool is_root = tree.parent < 0;
  const Place held = out.scratch(bytes);
  Place value{Space::Input};
  std::uint32_t ready = kNoStep;
  // A child's subtree holds higher ranks than all that came before: the order of operands is fixed.
  for (std::size_t i = 0; i < tree.children.size(); ++i) {
    const Place theirs = out.scratch(bytes);
    const std::uint32_t came = out.recv(tree.children[i], 0, theirs, bytes);
    const bool is_last = i + 1 == tree.children.size();
    const Place to = is_root && is_last ? Place{Space::Output} : held;
    ready = out.combine(to, value, theirs, bytes, {came, ready});
    value = to;
  }
  if (is_root) {
    if (shape.reduce == TENT_AVG) out.divide(value, bytes, {ready});
    return;
  }
  if (tree.children.empty()) ready = out.copy(held, value, bytes);
  out.send(tree.parent, 0, held, bytes, {ready});
}

void plan_barrier(const CollectiveShape& shape, Schedule& out) {
  const Place nothing = out.scratch(0);
  std::uint32_t heard = kNoStep, round = 0;
  for (std::int64_t distance = 1; distance < shape.size; distance *= 2, ++round) {
    const auto next = std::int32_t((shape.rank + distance) % shape.size);
    const auto before = std::int32_t((shape.rank - distance + shape.size) % shape.size);
    out.send(next, round, nothing, 0, {heard});
    heard = out.recv(before, round, nothing, 0, {heard});
  }
}

}  // namespace tent
