// Stage: slicer. Arithmetic between a transfer's line of bytes and scattered memory; no state.
#include "core/layout.h"

#include <algorithm>
#include <utility>

namespace tent {

namespace {

// Walks the grid of one part, one contiguous piece at a time, from a given piece number.
class GridWalk {
 public:
  GridWalk(const Part& part, std::uint64_t piece) : part_(part), index_(part.dims.size()) {
    for (std::size_t d = part.dims.size(); d-- > 0;) {
      index_[d] = piece % part.dims[d].count;
      piece /= part.dims[d].count;
    }
  }

  std::uint64_t address() const {
    std::uint64_t address = part_.base;
    for (std::size_t d = 0; d < index_.size(); ++d) {
      std::uint64_t at = index_[d];
      if (d == 0 && part_.blocks) at = std::uint64_t((*part_.blocks)[at]);
      address += at * std::uint64_t(part_.dims[d].stride);
    }
    return address;
  }

  void next() {
    for (std::size_t d = index_.size(); d-- > 0;) {
      if (++index_[d] < part_.dims[d].count) return;
      index_[d] = 0;
    }
  }

 private:
  const Part& part_;
  std::vector<std::uint64_t> index_;
};

void append(Pieces& out, std::size_t first, std::uint64_t address, std::uint64_t bytes) {
  if (out.size() > first && out.back().address + out.back().bytes == address) {
    out.back().bytes += bytes;
  } else {
    out.push_back({address, bytes});
  }
}

bool add_scaled(std::int64_t& sum, std::int64_t value, std::int64_t times) {
  std::int64_t product;
  return !__builtin_mul_overflow(value, times, &product) &&
         !__builtin_add_overflow(sum, product, &sum);
}

}  // namespace

BlockList::BlockList(std::vector<std::int64_t> blocks) : blocks_(std::move(blocks)) {
  if (blocks_.empty()) return;
  low_ = high_ = blocks_[0];
  for (const std::int64_t block : blocks_) {  // without branches, unlike std::minmax_element
    low_ = std::min(low_, block);
    high_ = std::max(high_, block);
  }
}

std::uint64_t Part::pieces() const {
  std::uint64_t n = 1;
  for (const Dim& dim : dims) {
    if (__builtin_mul_overflow(n, dim.count, &n)) return UINT64_MAX;
  }
  return n;
}

bool Part::extent(std::int64_t& low, std::int64_t& high) const {
  low = 0;
  high = 0;
  if (piece_bytes > INT64_MAX) return false;
  const std::uint64_t count = pieces();
  std::uint64_t total;
  if (count == UINT64_MAX || __builtin_mul_overflow(count, piece_bytes, &total) ||
      total > INT64_MAX) {
    return false;
  }
  if (count == 0) return true;
  for (std::size_t d = 0; d < dims.size(); ++d) {
    std::int64_t first = 0, last = std::int64_t(dims[d].count) - 1;
    if (d == 0 && blocks) {
      first = blocks->low();
      last = blocks->high();
    }
    if (dims[d].stride < 0) std::swap(first, last);
    if (!add_scaled(low, dims[d].stride, first) || !add_scaled(high, dims[d].stride, last)) {
      return false;
    }
  }
  return !__builtin_add_overflow(high, std::int64_t(piece_bytes), &high);
}

Layout::Layout(std::vector<Part> parts, Device device, std::uint64_t stream)
    : parts_(std::move(parts)), device_(device), stream_(stream) {
  std::uint64_t end = 0;
  ends_.reserve(parts_.size());
  for (const Part& part : parts_) ends_.push_back(end += part.bytes());
}

Layout Layout::contiguous(std::uint64_t address, std::uint64_t bytes, Device device,
                          std::uint64_t stream) {
  Part part;
  part.base = address;
  part.piece_bytes = bytes;
  std::vector<Part> parts;
  parts.push_back(std::move(part));
  return Layout(std::move(parts), device, stream);
}

void Layout::pieces(std::uint64_t offset, std::uint64_t length, Pieces& out) const {
  const std::size_t first = out.size();
  std::size_t p = std::size_t(std::upper_bound(ends_.begin(), ends_.end(), offset) - ends_.begin());
  for (; length > 0 && p < parts_.size(); ++p) {
    const Part& part = parts_[p];
    const std::uint64_t begin = p == 0 ? 0 : ends_[p - 1];
    if (begin == ends_[p]) continue;  // an empty part; it has no piece to divide by
    std::uint64_t in_part = offset - begin;
    if (part.dims.empty()) {
      const std::uint64_t take = std::min(length, part.piece_bytes - in_part);
      append(out, first, part.base + in_part, take);
      offset += take;
      length -= take;
      continue;
    }
    std::uint64_t in_piece = in_part % part.piece_bytes;
    for (GridWalk walk(part, in_part / part.piece_bytes); length > 0 && offset < ends_[p];
         walk.next()) {
      const std::uint64_t take = std::min(length, part.piece_bytes - in_piece);
      append(out, first, walk.address() + in_piece, take);
      in_piece = 0;
      offset += take;
      length -= take;
    }
  }
}

}  // namespace tent
