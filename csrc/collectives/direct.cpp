// Stage: collectives. Direct exchanges: see the header.
#include "collectives/direct.h"

#include <algorithm>
#include <array>
#include <bit>

namespace tent {

namespace {

constexpr std::int32_t kPairsAhead = 8;  // exchanges of an all_to_all that run at once
constexpr std::uint32_t kFolded = 100;   // channel of what ranks beyond a power of two send and get

Place input(std::int32_t index) { return {Space::Input, std::uint32_t(index)}; }
Place output(std::int32_t index) { return {Space::Output, std::uint32_t(index)}; }

// Sends from the caller's memory; when it is little, from a copy, so that the caller can have his
// memory back before the message has arrived.
std::uint32_t send_out(Schedule& out, const Tuning& tuning, std::int32_t peer, Place from,
                       std::uint64_t bytes, std::uint32_t after = kNoStep) {
  if (bytes > tuning.buffered_bytes) return out.send(peer, 0, from, bytes, {after});
  const Place held = out.scratch(bytes);
  return out.send(peer, 0, held, bytes, {out.copy(held, from, bytes, {after})});
}

}  // namespace

void plan_all_reduce_doubling(const CollectiveShape& shape, Schedule& out) {
  const std::uint64_t bytes = shape.inputs[0];
  const auto power = std::int32_t(std::bit_floor(std::uint32_t(shape.size)));
  const std::int32_t extra = shape.size - power;  // so many pairs of neighbours act as one
  const bool is_folded = shape.rank < 2 * extra;
  Place value = out.scratch(bytes);
  std::uint32_t ready = out.copy(value, input(0), bytes);
  if (is_folded && shape.rank % 2 == 1) {
    const std::uint32_t sent = out.send(shape.rank - 1, kFolded, value, bytes, {ready});
    out.recv(shape.rank - 1, kFolded, output(0), bytes, {sent});
    return;
  }
  if (is_folded) {
    const Place theirs = out.scratch(bytes);
    const std::uint32_t came = out.recv(shape.rank + 1, kFolded, theirs, bytes);
    ready = out.combine(theirs, value, theirs, bytes, {came, ready});
    value = theirs;
  }
  const std::int32_t place = is_folded ? shape.rank / 2 : shape.rank - extra;
  const auto real = [extra](std::int32_t p) { return p < extra ? 2 * p : p + extra; };
  std::uint32_t level = 0;
  for (std::int32_t bit = 1; bit < power; bit *= 2, ++level) {
    const std::int32_t other = place ^ bit;
    const Place theirs = out.scratch(bytes);
    out.send(real(other), level, value, bytes, {ready});
    const std::uint32_t came = out.recv(real(other), level, theirs, bytes);
    // Both compute lower op higher, so both get the same bits. The old value is still being sent.
    const Place left = place < other ? value : theirs, right = place < other ? theirs : value;
    ready = out.combine(theirs, left, right, bytes, {came, ready});
    value = theirs;
  }
  if (shape.reduce == TENT_AVG) ready = out.divide(value, bytes, {ready});
  out.copy(output(0), value, bytes, {ready});
  if (is_folded) out.send(shape.rank + 1, kFolded, value, bytes, {ready});
}

void plan_all_gather_direct(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  out.copy(output(shape.rank), input(0), shape.inputs[0]);
  Place from = input(0);
  std::uint32_t ready = kNoStep;
  if (shape.inputs[0] <= tuning.buffered_bytes) {
    from = out.scratch(shape.inputs[0]);
    ready = out.copy(from, input(0), shape.inputs[0]);
  }
  for (std::int32_t k = 1; k < shape.size; ++k) {
    const std::int32_t to = (shape.rank + k) % shape.size;
    const std::int32_t source = (shape.rank - k + shape.size) % shape.size;
    out.send(to, 0, from, shape.inputs[0], {ready});
    out.recv(source, 0, output(source), shape.outputs[std::size_t(source)]);
  }
}

void plan_all_gather_doubling(const CollectiveShape& shape, Schedule& out) {
  const auto rank_at = [&](std::int32_t i) { return (shape.rank + i) % shape.size; };
  // Scratch memory holds the pieces of rank, rank + 1, ...: piece i begins at starts[i].
  std::vector<std::uint64_t> starts{0};
  for (std::int32_t i = 0; i < shape.size; ++i)
    starts.push_back(starts.back() + shape.outputs[std::size_t(rank_at(i))]);
  const Place held = out.scratch(starts.back());
  std::uint32_t ready = out.copy(held, input(0), shape.inputs[0]);
  std::uint32_t round = 0;
  for (std::int32_t have = 1; have < shape.size; ++round) {
    const std::int32_t count = std::min(have, shape.size - have);
    const std::int32_t to = (shape.rank - have + shape.size) % shape.size, from = rank_at(have);
    // All the pieces before `have` came in this order, so the last receive stands for all.
    out.send(to, round, held, starts[std::size_t(count)], {ready});
    const std::uint64_t start = starts[std::size_t(have)];
    ready = out.recv(from, round, held + start, starts[std::size_t(have + count)] - start, {ready});
    have += count;
  }
  for (std::int32_t i = 0; i < shape.size; ++i) {
    const std::uint64_t start = starts[std::size_t(i)], end = starts[std::size_t(i) + 1];
    out.copy(output(rank_at(i)), held + start, end - start, {ready});
  }
}

void plan_gather(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  if (shape.rank != shape.root) {
    send_out(out, tuning, shape.root, input(0), shape.inputs[0]);
    return;
  }
  out.copy(output(shape.rank), input(0), shape.inputs[0]);
  for (std::int32_t rank = 0; rank < shape.size; ++rank)
    if (rank != shape.rank) out.recv(rank, 0, output(rank), shape.outputs[std::size_t(rank)]);
}

void plan_scatter(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  if (shape.rank != shape.root) {
    out.recv(shape.root, 0, output(0), shape.outputs[0]);
    return;
  }
  out.copy(output(0), input(shape.rank), shape.outputs[0]);
  for (std::int32_t rank = 0; rank < shape.size; ++rank)
    if (rank != shape.rank)
      send_out(out, tuning, rank, input(rank), shape.inputs[std::size_t(rank)]);
}

void plan_reduce_scatter_direct(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  const std::uint64_t bytes = shape.outputs[0];
  for (std::int32_t k = 1; k < shape.size; ++k) {
    const std::int32_t rank = (shape.rank + k) % shape.size;
    send_out(out, tuning, rank, input(rank), shape.inputs[std::size_t(rank)]);
  }
  const Place total = out.scratch(bytes);
  Place value;
  std::uint32_t ready = kNoStep;
  for (std::int32_t rank = 0; rank < shape.size; ++rank) {
    Place theirs = input(shape.rank);
    std::uint32_t came = kNoStep;
    if (rank != shape.rank) {
      theirs = out.scratch(bytes);
      came = out.recv(rank, 0, theirs, bytes);
    }
    if (rank == 0) {
      value = theirs;
      ready = came;
      continue;
    }
    const Place to = rank + 1 == shape.size ? output(0) : total;
    ready = out.combine(to, value, theirs, bytes, {ready, came});
    value = to;
  }
  if (shape.reduce == TENT_AVG) out.divide(value, bytes, {ready});
}

void plan_all_to_all(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  out.copy(output(shape.rank), input(shape.rank), shape.inputs[std::size_t(shape.rank)]);
  std::array<std::uint32_t, kPairsAhead> sent, came;
  sent.fill(kNoStep);
  came.fill(kNoStep);
  // Step k of a rank meets step k of its partner: the one with the lowest k can always go on.
  for (std::int32_t k = 1; k < shape.size; ++k) {
    const std::int32_t to = (shape.rank + k) % shape.size;
    const std::int32_t from = (shape.rank - k + shape.size) % shape.size;
    std::uint32_t &last_sent = sent[std::size_t(k % kPairsAhead)],
                  &last_came = came[std::size_t(k % kPairsAhead)];
    last_sent = send_out(out, tuning, to, input(to), shape.inputs[std::size_t(to)], last_sent);
    last_came = out.recv(from, 0, output(from), shape.outputs[std::size_t(from)], {last_came});
  }
}

}  // namespace tent
