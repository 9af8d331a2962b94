// Stage: c10d. One collective as the engine takes it, with the buffers it points to, all of them on
// one device. A value of the calling thread.
#pragma once

#include <vector>

#include "c10d/backend.h"

namespace tent {

struct TentBackend::Call {
  std::int32_t kind;
  at::Device device;
  std::vector<TentBuffer> inputs = {}, outputs = {};
  std::int32_t reduce = TENT_SUM, dtype = TENT_U8, root = 0;
};

}  // namespace tent
