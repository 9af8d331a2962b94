// Stage: slicer. Cuts a transfer's line of bytes into slices; the only place where slices are cut.
// A slice keeps its bounds when it is sent again, so the receiver can tell a repeat. Pure, one
// thread.
#pragma once

#include <cstdint>
#include <vector>

namespace tent {

struct SliceSpan {
  std::uint64_t offset = 0, bytes = 0;
};

class Slicer {
 public:
  explicit Slicer(std::uint64_t bytes = 0) : bytes_(bytes) {}

  std::uint64_t left() const { return bytes_ - cursor_ + returned_bytes_; }  // not yet handed out
  // The next slice: one that came back, else about `wanted` bytes. Requires left() > 0.
  SliceSpan next(std::uint64_t wanted);
  void give_back(SliceSpan span);

 private:
  std::uint64_t bytes_;
  std::uint64_t cursor_ = 0;
  std::vector<SliceSpan> returned_;
  std::uint64_t returned_bytes_ = 0;
};

}  // namespace tent
