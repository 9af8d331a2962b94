// Stage: transport. Memory that RDMA devices may touch, registered: a host's as it is, a GPU's
// (GPUDirect RDMA) by a descriptor of the range (dma-buf), or, where the driver or libibverbs knows
// no such, by the kernel module nvidia-peermem, which understands the addresses themselves.
// Any thread; the engine's and the registrar's call it. What always holds: no descriptor is kept,
// and where a GPU's memory cannot be registered, errno says why.
#pragma once

#include <cstdint>

#include "core/origin.h"
#include "drivers/verbs.h"

namespace tent {

// Null: refused. `device`: whose memory it is.
ibv::Mr* register_memory(const Verbs& verbs, ibv::Pd* pd, std::uint64_t begin, std::uint64_t end,
                         int rights, Device device);

}  // namespace tent
