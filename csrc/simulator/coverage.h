// Stage: tests. What happened in how many schedules, so that a simulator which no longer reaches
// the hard cases is noticed: the tests ask that none of these counts is zero. A value; one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace tent::sim {

enum class Seen : std::uint8_t {
  SendDone,
  RecvDone,
  WriteDone,
  ReadDone,
  EmptyDone,
  ScatteredDone,
  AnySourceDone,
  InOrderDone,
  NoteSeen,
  Cancelled,
  TimedOut,
  PeerLost,
  AccessRefused,
  StaleRefused,
  MismatchRefused,
  UnreachableRefused,
  RevokedLive,
  ClosedLive,
  ReusedAtOnce,
  Fenced,
  Resent,
  Doubled,
  CancelUnanswered,
  TornSlice,
  TornThenRefused,
  LateRefused,
  LateBytes,
  FillerSent,
  LocalCopied,
  PlacedDirectly,
  PlacementStopped,
  LinkReset,
  LinkHole,
  LinkStalled,
  RailSlow,
  RailOut,
  LinkBack,
  HalfTold,
  DuplicateRefused,
  ReorderRefused,
  HeaderRefused,
  BodyRefused,
  PayloadRefused,
  AckRefused,
  RangeRefused,
  Stopped,
  Crashed,
  Restarted,
  SaidBye,
  HealedWithoutError,
  kCount,
};

inline constexpr std::array<const char*, static_cast<std::size_t>(Seen::kCount)> kSeenNames = {
    "send_done",
    "recv_done",
    "write_done",
    "read_done",
    "empty_done",
    "scattered_done",
    "any_source_done",
    "in_order_done",
    "note_seen",
    "cancelled",
    "timed_out",
    "peer_lost",
    "access_refused",
    "stale_refused",
    "mismatch_refused",
    "unreachable_refused",
    "revoked_live",
    "closed_live",
    "reused_at_once",
    "fenced",
    "resent",
    "doubled",
    "cancel_unanswered",
    "torn_slice",
    "torn_then_refused",
    "late_refused",
    "late_bytes",
    "filler_sent",
    "local_copied",
    "placed_directly",
    "placement_stopped",
    "link_reset",
    "link_hole",
    "link_stalled",
    "rail_slow",
    "rail_out",
    "link_back",
    "half_told",
    "duplicate_refused",
    "reorder_refused",
    "header_refused",
    "body_refused",
    "payload_refused",
    "ack_refused",
    "range_refused",
    "stopped",
    "crashed",
    "restarted",
    "said_bye",
    "healed_without_error",
};

// One schedule's marks, or the number of schedules with each mark.
class Coverage {
 public:
  void mark(Seen seen) { marks_ |= std::uint64_t{1} << static_cast<unsigned>(seen); }
  bool has(Seen seen) const { return marks_ >> static_cast<unsigned>(seen) & 1; }
  std::uint64_t marks() const { return marks_; }

 private:
  static_assert(static_cast<unsigned>(Seen::kCount) <= 64);
  std::uint64_t marks_ = 0;
};

using SeenCounts = std::array<std::uint64_t, static_cast<std::size_t>(Seen::kCount)>;

inline void count(SeenCounts& counts, const Coverage& coverage) {
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += coverage.marks() >> i & 1;
}

}  // namespace tent::sim
