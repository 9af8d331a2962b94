// Stage: transport. A port of an RDMA device, as links name it. A value; any thread.
#pragma once

#include <cstdint>
#include <string>

namespace tent {

struct RdmaPort {
  std::string device;
  std::uint8_t port = 1;
  std::uint8_t gid_index = 0;
};

}  // namespace tent
