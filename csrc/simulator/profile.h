// Stage: tests. What kind of schedule a seed makes: how many processes, what their rails are like,
// what they ask of each other, and what goes wrong.
// A value, drawn from the seed before anything else happens.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/settings.h"
#include "simulator/random.h"

namespace tent::sim {

enum class Family : std::uint8_t {
  Calm,       // no faults: everything must succeed
  Rails,      // rails fail, but one rail of each pair never does: nothing may fail
  Outages,    // every rail may fail
  Ends,       // cancels, timeouts, revocations and closed segments while rails fail
  Processes,  // processes stop, crash, restart, say bye
  Mischief,   // frames doubled, swapped, damaged
  Placing,    // links that write into memory by themselves once they were told where
  Storm,      // all of it
  kCount,
};
inline constexpr std::array<std::string_view, static_cast<std::size_t>(Family::kCount)>
    kFamilyNames = {"calm",      "rails",    "outages", "ends",
                    "processes", "mischief", "placing", "storm"};

enum class FaultKind : std::uint8_t {
  Reset,     // a link: both ends are told, each in its time; the tail is lost
  HalfTold,  // the same, but one end hears of it only much later or never
  Hole,      // one direction of a link, or both, swallow everything for ever; nobody is told
  Stall,     // the same, but what was swallowed arrives later
  Slow,      // a rail is 100 times slower for a while
  Outage,    // a rail loses its links and accepts no new ones for a while
  Mischief,  // a frame on a link is doubled, swapped or damaged
  Stop,      // a process handles nothing for a while, then everything at once
  Crash,     // a process ends
  Restart,   // a process ends and comes back as a new incarnation
  Bye,       // a process closes as it should
  kCount,
};

enum class OperationKind : std::uint8_t {
  Message,       // a send and its receive
  InOrder,       // several messages with one tag
  AnySource,     // receives that take what comes
  Lonely,        // a send or a receive without its other half
  Mismatched,    // the two halves disagree
  Write,         // one-sided, to a plain segment
  BlockWrite,    // one-sided, to blocks of a cache, with a notification
  Read,          // one-sided
  Forbidden,     // a target outside of the rights or bounds
  Revoke,        // blocks of a cache, reused at once
  CloseSegment,  // the whole segment, reused at once
  kCount,
};

inline constexpr std::uint64_t kLargestTransfer = 192u << 10;

struct Profile {
  Family family = Family::Calm;
  std::uint32_t processes = 2;
  std::uint32_t rails_min = 1, rails_max = 3;
  bool spare = false;       // the first rail of each pair never fails, and stops are short
  double local_rail = 0.2;  // chance that a rail is on the same host
  double placing_rail = 0;  // chance that a rail writes by itself
  double tear = 0.1;        // chance that a chunk is cut short
  double late_tail = 0.5;   // chance that a close lets bytes already sent arrive
  std::uint64_t arena_bytes = 96u << 10;
  std::uint64_t bytes_max = 16u << 10;
  CoreSettings settings;
  std::uint32_t operations = 10, faults = 0;
  TimeNs work_time = 0, fault_time = 0;
  double cancel = 0, expire = 0, follow_up = 0.1;
  std::array<double, static_cast<std::size_t>(OperationKind::kCount)> operation_weights{};
  std::array<double, static_cast<std::size_t>(FaultKind::kCount)> fault_weights{};
};

Profile draw_profile(Random& random, int forced_family);  // < 0: any

template <std::size_t N>
std::size_t pick(Random& random, const std::array<double, N>& weights) {
  double total = 0;
  for (double weight : weights) total += weight;
  double left = static_cast<double>(random.next() >> 11) * 0x1p-53 * total;
  for (std::size_t i = 0; i < N; ++i) {
    if (left < weights[i]) return i;
    left -= weights[i];
  }
  return N - 1;
}

}  // namespace tent::sim
