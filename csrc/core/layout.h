// Stage: slicer. A transfer is a line of bytes 0..bytes(); a Layout says where in memory each of
// them lies. It stays compact (base, strides, block indices) however many pieces there are.
// A value; used by the sender for its source, by the receiver for its destination.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/origin.h"
#include "core/types.h"

namespace tent {

struct Dim {
  std::uint64_t count;
  std::int64_t stride;  // bytes
};

// The numbers of a cache's blocks. The parts of many layers share one list, and each asks for the
// bounds: they are looked for once. Immutable.
class BlockList {
 public:
  explicit BlockList(std::vector<std::int64_t> blocks);
  std::size_t size() const { return blocks_.size(); }
  std::int64_t operator[](std::size_t i) const { return blocks_[i]; }
  auto begin() const { return blocks_.begin(); }
  auto end() const { return blocks_.end(); }
  std::int64_t low() const { return low_; }  // 0 for an empty list, as is high()
  std::int64_t high() const { return high_; }

 private:
  std::vector<std::int64_t> blocks_;
  std::int64_t low_ = 0, high_ = 0;
};

// A strided grid of equal contiguous pieces. With `blocks`, the outermost dim walks an index list:
// its i-th position lies at base + blocks[i] * dims[0].stride.
struct Part {
  std::uint64_t base = 0;  // address, or in a remote layout the byte offset in `plane`
  std::uint32_t plane = 0;
  std::uint64_t piece_bytes = 0;
  std::vector<Dim> dims;  // outermost first; empty: one piece
  std::shared_ptr<const BlockList> blocks;

  std::uint64_t pieces() const;
  std::uint64_t bytes() const { return pieces() * piece_bytes; }
  // Lowest and one-past-highest byte touched, relative to base; false when it overflows 63 bits.
  bool extent(std::int64_t& low, std::int64_t& high) const;
};

class Layout {
 public:
  Layout() = default;
  explicit Layout(std::vector<Part> parts, Device device = kHost, std::uint64_t stream = 0);
  static Layout contiguous(std::uint64_t address, std::uint64_t bytes, Device device = kHost,
                           std::uint64_t stream = 0);

  std::uint64_t bytes() const { return ends_.empty() ? 0 : ends_.back(); }
  const std::vector<Part>& parts() const { return parts_; }
  // Whose memory the addresses are in. That of a GPU is never touched by the core or a transport:
  // the engine brings its bytes to host memory and back (csrc/device).
  Device device() const { return device_; }
  // The GPU's stream in which work on these bytes is queued: a transfer goes after it.
  std::uint64_t stream() const { return stream_; }
  // Appends the memory of line bytes [offset, offset + length), neighbours merged.
  // Requires offset + length <= bytes().
  void pieces(std::uint64_t offset, std::uint64_t length, Pieces& out) const;

 private:
  std::vector<Part> parts_;
  std::vector<std::uint64_t> ends_;  // running sum of the parts' bytes
  Device device_ = kHost;
  std::uint64_t stream_ = 0;
};

}  // namespace tent
