// Stage: c10d. GPUs as torch's device-independent part sees them: the caller's streams, streams of
// torch's pool, and tensors on addresses. Any thread; no state. What always holds: nothing here
// needs a header or a library of CUDA, so one build serves torch with and without it.
#pragma once

#include <c10/core/Stream.h>

#include <cstdint>

#include "c10d/torch_versions.h"
#include "engine/c_api.h"

namespace tent {

// The driver's stream behind torch's.
std::uint64_t driver_stream(const c10::Stream& stream);
// The device, and the stream in which the caller queues work on it; TENT_HOST for the CPU.
TentPlace place_of(const at::Device& device);
c10::Stream current_stream(const at::Device& device);
c10::Stream pool_stream(const at::Device& device);
// A tensor on memory that somebody else keeps.
at::Tensor tensor_at(const at::Device& device, std::uint64_t address, std::uint64_t bytes,
                     at::ScalarType dtype);
// The allocator does not give the tensor's memory to others before this stream has come so far.
void keep_for(const c10::Stream& stream, const at::Tensor& tensor);

}  // namespace tent
