// Stage: engine. What an engine is told when it is made: the core's numbers, and what of the world
// it may use. A value; any thread.
#pragma once

#include <string>

#include "core/settings.h"

namespace tent {

struct EngineSettings : CoreSettings {
  bool rdma = false;  // RDMA rails may come: memory in use is remembered for registering
  std::uint32_t rdma_links_max = UINT32_MAX;  // of one device; it may have fewer to give
  std::uint64_t rdma_kept_bytes_max = 0;      // registered, of memory that no transfer uses
  // Of a GPU's scattered pieces: smaller ones are gathered by a kernel; 0: none are.
  std::uint64_t gpu_gather_bytes_max = 0;
  std::string rdma_library;  // the libibverbs to open; "": the system's
};

}  // namespace tent
