// Stage: engine. How long things took, in log-linear buckets after HdrHistogram: exact to a
// microsecond below 64 µs and to 3 % above, in 7 KiB whatever is counted.
// One thread at a time; Operations owns them under the engine lock.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "core/types.h"

namespace tent {

class Histogram {
 public:
  static constexpr int kLinear = 64;     // buckets of 1 µs below 64 µs
  static constexpr int kPerOctave = 32;  // buckets for each doubling above
  static constexpr int kOctaves = 26;    // up to 2^32 µs, more than an hour
  static constexpr int kBuckets = kLinear + kPerOctave * kOctaves;

  void add(TimeNs duration) {
    const std::uint64_t us = duration <= 0 ? 0 : std::uint64_t(duration) / kMicrosecond;
    ++counts_[bucket(us)];
    ++count_;
    sum_ += std::max<TimeNs>(duration, 0);
    max_ = std::max(max_, duration);
  }
  std::uint64_t count() const { return count_; }
  std::uint64_t count_in(int index) const { return counts_[index]; }
  TimeNs sum() const { return sum_; }
  TimeNs max() const { return max_; }

  // Lowest duration of the bucket in microseconds; that of index + 1 is where it ends.
  static constexpr std::uint64_t lowest_us(int index) {
    if (index < kLinear) return std::uint64_t(index);
    const int octave = (index - kLinear) / kPerOctave, step = (index - kLinear) % kPerOctave;
    return std::uint64_t(kPerOctave + step) << (octave + 1);
  }
  // Upper end, in seconds, of the bucket in which the share `quantile` of all counts is reached.
  double quantile(double quantile) const {
    const auto wanted = std::uint64_t(quantile * double(count_));
    std::uint64_t seen = 0;
    for (int index = 0; index < kBuckets; ++index) {
      seen += counts_[index];
      if (seen > wanted) return double(lowest_us(index + 1)) * 1e-6;
    }
    return double(max_) * 1e-9;
  }

  static constexpr int bucket(std::uint64_t us) {
    if (us < kLinear) return int(us);
    const int octave = std::bit_width(us) - 7;  // 64..127 is octave 0
    const int step = int(us >> (octave + 1)) - kPerOctave;
    return std::min(kLinear + octave * kPerOctave + step, kBuckets - 1);
  }

 private:
  std::array<std::uint64_t, kBuckets> counts_{};
  std::uint64_t count_ = 0;
  TimeNs sum_ = 0, max_ = 0;
};

// Each bucket begins where the one before it ends, and holds what it says.
static_assert([] {
  for (int index = 0; index < Histogram::kBuckets; ++index) {
    const std::uint64_t lowest = Histogram::lowest_us(index);
    const std::uint64_t next = Histogram::lowest_us(index + 1);
    if (Histogram::bucket(lowest) != index || Histogram::bucket(next - 1) != index) return false;
  }
  return true;
}());

}  // namespace tent
