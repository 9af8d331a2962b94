// Stage: all. Whose memory bytes are in, and for what they are touched. Values only.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace tent {

using Device = std::int16_t;  // a GPU as this process counts them, or kHost
inline constexpr Device kHost = -1;

struct Origin {
  Device device = kHost;
  TransferId transfer = 0;  // of this process; 0: a peer's access to a segment
  SegmentId segment = 0;
};

}  // namespace tent
