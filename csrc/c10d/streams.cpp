// Stage: c10d. GPUs without CUDA: see the header.
#include "c10d/streams.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace tent {

namespace {

// What torch knows of a kind of device, by functions that its library for that kind brings.
using KindOfDevice = c10::impl::VirtualGuardImpl;

KindOfDevice kind_of(const at::Device& device) { return KindOfDevice(device.type()); }

}  // namespace

std::uint64_t driver_stream(const c10::Stream& stream) {
  return reinterpret_cast<std::uint64_t>(stream.native_handle());
}

c10::Stream current_stream(const at::Device& device) { return kind_of(device).getStream(device); }

c10::Stream pool_stream(const at::Device& device) {
  return kind_of(device).getStreamFromGlobalPool(device);
}

TentPlace place_of(const at::Device& device) {
  if (device.is_cpu()) return {TENT_HOST, 0};
  return {device.index(), driver_stream(current_stream(device))};
}

at::Tensor tensor_at(const at::Device& device, std::uint64_t address, std::uint64_t bytes,
                     at::ScalarType dtype) {
  const auto count = std::int64_t(bytes / at::elementSize(dtype));
  return at::for_blob(reinterpret_cast<void*>(address), {count})
      .options(at::TensorOptions().dtype(dtype).device(device))
      .target_device(device)
      .make_tensor();
}

void keep_for(const c10::Stream& stream, const at::Tensor& tensor) {
  kind_of(stream.device()).recordDataPtrOnStream(tensor.storage().data_ptr(), stream);
}

}  // namespace tent
