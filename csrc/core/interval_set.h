// Stage: slicer. A set of numbers kept as disjoint intervals: which bytes of a transfer have
// landed, which flows have ended. Small because what it holds is nearly contiguous. One thread.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>

namespace tent {

class IntervalSet {
 public:
  // Adds [begin, end); returns how many of its members were new.
  std::uint64_t add(std::uint64_t begin, std::uint64_t end) {
    std::uint64_t fresh = end - begin;
    auto it = intervals_.upper_bound(begin);
    if (it != intervals_.begin() && std::prev(it)->second >= begin) --it;
    while (it != intervals_.end() && it->first <= end) {
      const std::uint64_t low = it->first > begin ? it->first : begin;
      const std::uint64_t high = it->second < end ? it->second : end;
      if (high > low) fresh -= high - low;
      if (it->first < begin) begin = it->first;
      if (it->second > end) end = it->second;
      it = intervals_.erase(it);
    }
    intervals_.emplace_hint(it, begin, end);
    count_ += fresh;
    return fresh;
  }

  bool contains(std::uint64_t begin, std::uint64_t end) const {
    auto it = intervals_.upper_bound(begin);
    return it != intervals_.begin() && std::prev(it)->second >= end;
  }

  std::uint64_t count() const { return count_; }
  std::size_t intervals() const { return intervals_.size(); }

 private:
  std::map<std::uint64_t, std::uint64_t> intervals_;  // begin -> end
  std::uint64_t count_ = 0;
};

}  // namespace tent
