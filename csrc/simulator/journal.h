// Stage: tests. What happened in one schedule: a hash of every event, always, so that a replay can
// be compared; the events as text, when a failing seed is replayed; and the first broken promise.
// Owned by World; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/types.h"

namespace tent::sim {

class Journal {
 public:
  explicit Journal(bool keep_text) : keep_text_(keep_text) {}

  template <class... Numbers>
  void event(TimeNs at, std::string_view what, Numbers... numbers) {
    mix(static_cast<std::uint64_t>(at) ^ what.size() << 56 ^
        static_cast<std::uint64_t>(static_cast<unsigned char>(what.front())) << 48);
    (mix(static_cast<std::uint64_t>(numbers)), ...);
    if (!keep_text_) return;
    std::string line = stamp(at);
    line += what;
    ((line += ' ', line += std::to_string(numbers)), ...);
    lines_.push_back(std::move(line));
  }
  void remark(TimeNs at, const std::string& text) {  // only for the reader
    if (keep_text_) lines_.push_back(stamp(at) + text);
  }
  bool keeps_text() const { return keep_text_; }

  // The first one counts: what follows a broken promise is noise.
  void fail(TimeNs at, const std::string& why) {
    if (failed()) return;
    failure_ = why;
    remark(at, "BROKEN: " + why);
  }
  bool failed() const { return !failure_.empty(); }
  const std::string& failure() const { return failure_; }
  std::uint64_t hash() const { return hash_; }
  std::vector<std::string>& lines() { return lines_; }

 private:
  static std::string stamp(TimeNs at) {
    std::string micros = std::to_string(at / 1000), nanos = std::to_string(at % 1000);
    return std::string(micros.size() < 8 ? 8 - micros.size() : 0, ' ') + micros + '.' +
           std::string(3 - nanos.size(), '0') + nanos + "us ";
  }
  void mix(std::uint64_t value) {
    hash_ = (hash_ ^ value) * 0x9fb21c651e98df25ull;
    hash_ ^= hash_ >> 32;
  }
  bool keep_text_;
  std::uint64_t hash_ = 0x2545f4914f6cdd1dull;
  std::string failure_;
  std::vector<std::string> lines_;
};

}  // namespace tent::sim
