// Stage: engine. The last slices that left this process, and the last copies from and to GPUs, for
// traces and pictures: rings of fixed size that overwrite their oldest entries. Under the engine
// lock.
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

struct TracedCopy {
  Device device;
  const char* way;  // "out", "in", "across", as the GPU sees it
  std::uint64_t bytes;
  TimeNs begun, ended;  // asked of the GPU, seen to be done
};

template <class Entry>
class Trace {
 public:
  static constexpr std::size_t kEntriesMax = 1 << 16;

  void turn(bool on) {
    on_ = on;
    if (!on) clear();
  }
  bool on() const { return on_; }
  void add(Entry entry) {
    if (entries_.size() < kEntriesMax) {
      entries_.push_back(std::move(entry));
    } else {
      entries_[oldest_] = std::move(entry);
      oldest_ = (oldest_ + 1) % kEntriesMax;
    }
  }
  // Oldest first; the ring is empty after.
  std::vector<Entry> take() {
    std::vector<Entry> taken;
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
  std::vector<Entry> entries_;
};

}  // namespace tent
