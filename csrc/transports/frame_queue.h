// Stage: transport. The frames that wait for a link, oldest first, without an allocation per frame.
// Engine lock held; bounded by the windows of the session that posts them.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "core/wire.h"

namespace tent {

class FrameQueue {
 public:
  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  Frame& operator[](std::size_t index) { return frames_[(first_ + index) & (frames_.size() - 1)]; }
  Frame& front() { return frames_[first_]; }

  void push(Frame frame) {
    if (size_ == frames_.size()) grow();
    (*this)[size_++] = std::move(frame);
  }
  void pop() {
    frames_[first_].body.reset();
    first_ = (first_ + 1) & (frames_.size() - 1);
    if (--size_ == 0 && frames_.size() > kKept) *this = FrameQueue();
  }

 private:
  static constexpr std::size_t kKept = 64;  // an idle link holds no more than this

  void grow() {
    std::vector<Frame> wider(frames_.empty() ? 8 : 2 * frames_.size());  // a power of two, always
    for (std::size_t i = 0; i < size_; ++i) wider[i] = std::move((*this)[i]);
    frames_ = std::move(wider);
    first_ = 0;
  }

  std::vector<Frame> frames_;
  std::size_t first_ = 0, size_ = 0;
};

}  // namespace tent
