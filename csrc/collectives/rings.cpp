// Stage: collectives. Rings: see the header.
#include "collectives/rings.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace tent {

namespace {

constexpr std::uint64_t kLanes = 2;  // chunks of a piece that are on their way at once

struct Share {  // piece r of the reduced buffer is complete first at rank r
  Place from;   // this rank's part of it
  std::uint64_t bytes = 0;
};

// Chunks i, i + kLanes, ... share a lane, one after the other. Its two slots take turns: a receive
// waits, round the whole ring, only for steps that come earlier in everybody's order, so the ring
// cannot stop.
struct Lane {
  std::array<Place, 2> slots;
  std::array<std::uint32_t, 2> free{kNoStep, kNoStep};  // the step after which a slot is free
  std::uint32_t turn = 0;
  std::uint32_t first_sent = kNoStep;
};

struct Chunk {  // the same stretch of every piece
  std::uint64_t at = 0, bytes_max = 0;
  std::uint32_t channel = 0;  // of the first turn; the second has channels of its own
  Lane* lane = nullptr;
};

struct Sum {  // a chunk of this rank's own piece, complete
  Place at;
  std::uint32_t ready = kNoStep;
  std::uint32_t* slot_free = nullptr;  // of the slot it lies in, unless it was given a place
  std::vector<std::uint32_t> reads;  // per piece: the step that read this rank's part of the chunk
};

class Ring {
 public:
  Ring(const CollectiveShape& shape, const Tuning& tuning, std::vector<Share> pieces, Schedule& out)
      : shape_(shape), pieces_(std::move(pieces)), out_(out) {
    std::uint64_t longest = 1;
    for (const Share& piece : pieces_) longest = std::max(longest, piece.bytes);
    chunk_bytes_ = std::min(tuning.chunk_bytes, longest);
    const std::uint64_t count = (longest + chunk_bytes_ - 1) / chunk_bytes_;
    for (std::uint64_t i = 0; i < std::min(count, kLanes); ++i)
      for (Place& slot : lanes_[i].slots) slot = out.scratch(chunk_bytes_);
    const std::uint64_t channels = 2 * std::uint64_t(shape.size);
    for (std::uint64_t i = 0; i < count; ++i)
      chunks_.push_back({i * chunk_bytes_, chunk_bytes_,
                         std::uint32_t(i * channels % (1u << kChannelBits)), &lanes_[i % kLanes]});
  }

  const std::vector<Chunk>& chunks() const { return chunks_; }
  const Share& own() const { return pieces_[std::size_t(shape_.rank)]; }
  std::int32_t next() const { return (shape_.rank + 1) % shape_.size; }
  std::int32_t before(std::int32_t steps) const {  // 0 <= steps <= size
    return (shape_.rank - steps + shape_.size) % shape_.size;
  }
  std::uint64_t length(std::int32_t piece, const Chunk& chunk) const {
    const std::uint64_t bytes = pieces_[std::size_t(piece)].bytes;
    return bytes <= chunk.at ? 0 : std::min(chunk.bytes_max, bytes - chunk.at);
  }

  // The first turn. The partial sum of piece r starts at rank r + 1 and ends at rank r, so operands
  // always come in the same order. `total`: where the own piece's chunk is wanted, if anywhere.
  Sum reduce(const Chunk& chunk, const Place* total) {
    Lane& lane = *chunk.lane;
    Sum sum;
    sum.reads.assign(pieces_.size(), kNoStep);
    for (std::int32_t k = 0; k + 1 < shape_.size; ++k) {
      const std::int32_t leaving = before(k + 1), coming = before(k + 2);
      const std::uint32_t channel = chunk.channel + std::uint32_t(k);
      const Share& mine = pieces_[std::size_t(coming)];
      if (k == 0) {
        const Place from = pieces_[std::size_t(leaving)].from + chunk.at;
        lane.first_sent =
            out_.send(next(), channel, from, length(leaving, chunk), {lane.first_sent});
        sum.reads[std::size_t(leaving)] = lane.first_sent;
      } else {
        *sum.slot_free = out_.send(next(), channel, sum.at, length(leaving, chunk), {sum.ready});
      }
      const std::uint32_t turn = lane.turn++ % 2;
      const Place slot = lane.slots[turn];
      const std::uint64_t bytes = length(coming, chunk);
      const std::uint32_t came = out_.recv(before(1), channel, slot, bytes, {lane.free[turn]});
      sum.at = total != nullptr && k + 2 == shape_.size ? *total : slot;
      sum.ready = out_.combine(sum.at, slot, mine.from + chunk.at, bytes, {came});
      sum.reads[std::size_t(coming)] = sum.ready;
      sum.slot_free = &lane.free[turn];
      *sum.slot_free = sum.ready;
    }
    if (shape_.reduce == TENT_AVG)
      sum.ready = *sum.slot_free = out_.divide(sum.at, length(shape_.rank, chunk), {sum.ready});
    return sum;
  }

 private:
  const CollectiveShape& shape_;
  const std::vector<Share> pieces_;
  Schedule& out_;
  std::uint64_t chunk_bytes_ = 1;
  std::array<Lane, kLanes> lanes_;
  std::vector<Chunk> chunks_;
};

// One buffer, cut into as many pieces as there are ranks, between elements.
std::vector<Share> equal_pieces(const CollectiveShape& shape) {
  const std::uint64_t total = shape.inputs[0], ranks = std::uint64_t(shape.size);
  const std::uint64_t grain = 64;  // bytes: whole elements of every dtype, and whole cache lines
  const std::uint64_t each = (total / ranks + grain - 1) / grain * grain;
  std::vector<Share> pieces(ranks);
  for (std::uint64_t i = 0; i < ranks; ++i) {
    const std::uint64_t begin = std::min(i * each, total);
    const std::uint64_t end = i + 1 == ranks ? total : std::min(begin + each, total);
    pieces[i] = {{Space::Input, 0, begin}, end - begin};
  }
  return pieces;
}

Place in_output(const Share& piece) { return {Space::Output, 0, piece.from.offset}; }

}  // namespace

void plan_all_reduce_ring(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  const std::vector<Share> pieces = equal_pieces(shape);
  Ring ring(shape, tuning, pieces, out);
  for (const Chunk& chunk : ring.chunks()) {
    const Place total = in_output(ring.own()) + chunk.at;
    const Sum sum = ring.reduce(chunk, &total);
    std::uint32_t ready = sum.ready;
    for (std::int32_t k = 0; k + 1 < shape.size; ++k) {
      const std::int32_t leaving = ring.before(k), coming = ring.before(k + 1);
      const std::uint32_t channel = chunk.channel + std::uint32_t(shape.size + k);
      out.send(ring.next(), channel, in_output(pieces[std::size_t(leaving)]) + chunk.at,
               ring.length(leaving, chunk), {ready});
      // In place, the output is the input: it is overwritten only when it has been read.
      ready = out.recv(ring.before(1), channel, in_output(pieces[std::size_t(coming)]) + chunk.at,
                       ring.length(coming, chunk), {sum.reads[std::size_t(coming)]});
    }
  }
}

void plan_reduce_ring(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  const std::vector<Share> pieces = equal_pieces(shape);
  Ring ring(shape, tuning, pieces, out);
  for (const Chunk& chunk : ring.chunks()) {
    const std::uint32_t channel = chunk.channel + std::uint32_t(shape.size);
    if (shape.rank != shape.root) {
      const Sum sum = ring.reduce(chunk, nullptr);
      *sum.slot_free =
          out.send(shape.root, channel, sum.at, ring.length(shape.rank, chunk), {sum.ready});
      continue;
    }
    const Place total = in_output(ring.own()) + chunk.at;
    const Sum sum = ring.reduce(chunk, &total);
    for (std::int32_t rank = 0; rank < shape.size; ++rank)
      if (rank != shape.rank)
        out.recv(rank, channel, in_output(pieces[std::size_t(rank)]) + chunk.at,
                 ring.length(rank, chunk), {sum.reads[std::size_t(rank)]});
  }
}

void plan_reduce_scatter_ring(const CollectiveShape& shape, const Tuning& tuning, Schedule& out) {
  std::vector<Share> pieces;
  for (std::uint64_t bytes : shape.inputs)
    pieces.push_back({{Space::Input, std::uint32_t(pieces.size())}, bytes});
  Ring ring(shape, tuning, pieces, out);
  for (const Chunk& chunk : ring.chunks()) {
    const Place total = Place{Space::Output} + chunk.at;
    ring.reduce(chunk, &total);
  }
}

void plan_all_gather_ring(const CollectiveShape& shape, Schedule& out) {
  const std::int32_t next = (shape.rank + 1) % shape.size;
  const std::int32_t previous = (shape.rank - 1 + shape.size) % shape.size;
  out.copy({Space::Output, std::uint32_t(shape.rank)}, {Space::Input}, shape.inputs[0]);
  Place leaving{Space::Input};
  std::uint64_t bytes = shape.inputs[0];
  std::uint32_t ready = kNoStep;
  for (std::int32_t k = 0; k + 1 < shape.size; ++k) {
    const auto coming = std::uint32_t((shape.rank - k - 1 + shape.size) % shape.size);
    out.send(next, std::uint32_t(k), leaving, bytes, {ready});
    leaving = {Space::Output, coming};
    bytes = shape.outputs[coming];
    ready = out.recv(previous, std::uint32_t(k), leaving, bytes);
  }
}

}  // namespace tent
