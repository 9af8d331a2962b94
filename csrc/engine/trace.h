// Stage: engine. The last slices that left this process, for traces and pictures: a ring of fixed
// size that overwrites its oldest entries. Under the engine lock.
#pragma once

#include <cstdint>
#include <vector>

#include "core/node.h"
#include "engine/rails.h"

namespace tent {

struct TracedSlice {
  SliceEvent event;
  RailRef rail;
};

class Trace {
 public:
  static constexpr std::size_t kEntriesMax = 1 << 16;

  void turn(bool on) {
    on_ = on;
    if (!on) clear();
  }
  bool on() const { return on_; }
  void add(TracedSlice slice) {
    if (entries_.size() < kEntriesMax) {
      entries_.push_back(std::move(slice));
    } else {
      entries_[oldest_] = std::move(slice);
      oldest_ = (oldest_ + 1) % kEntriesMax;
    }
  }
  // Oldest first; the ring is empty after.
  std::vector<TracedSlice> take() {
    std::vector<TracedSlice> taken;
    taken.reserve(entries_.size());
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      taken.push_back(std::move(entries_[(oldest_ + i) % entries_.size()]));
    }
    clear();
    return taken;
  }

 private:
  void clear() {
    entries_.clear();
    oldest_ = 0;
  }

  bool on_ = false;
  std::size_t oldest_ = 0;
  std::vector<TracedSlice> entries_;
};

}  // namespace tent
