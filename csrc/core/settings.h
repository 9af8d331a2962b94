// Stage: engine. The numbers that the pure state machines need; set once, from Python's Settings.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace tent {

struct CoreSettings {
  std::uint64_t slice_bytes_min = 16u << 10;
  std::uint64_t slice_bytes_max = 4u << 20;
  std::uint64_t inline_bytes_max = 8u << 10;  // at most this much payload rides in a message
  std::uint64_t eager_bytes_max = 1u << 20;   // inline sends to one peer that wait for a match
  TimeNs slice_time = 500 * kMicrosecond;     // a slice is about this much work for its rail
  TimeNs target_delay = 4 * kMillisecond;     // work kept in flight on a rail
  TimeNs overdue_min = 20 * kMillisecond;     // a slice is never overdue before
  double overdue_factor = 4;                  // ... nor before this times its prediction
  TimeNs ack_delay = 4 * kMillisecond;        // how long an acknowledgement waits for company
  TimeNs peer_timeout = 10 * kSecond;         // a silent peer is lost after
  TimeNs keepalive = 1 * kSecond;             // idle links with waiting transfers are pinged
  TimeNs rest_after = kNever;  // an RDMA link that carried nothing for so long is closed
  bool checksum = false;
};

}  // namespace tent
