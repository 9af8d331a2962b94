// Stage: drivers. libcuda, opened when the first CUDA tensor is seen and kept until the process
// ends. Any thread. Every call's failure comes back as a Status that says what was asked, of which
// GPU, and what the driver answered; nothing here throws.
// What always holds: without libcuda everything else works; no context is made on a device before
// Gpu::open is called for it.
#pragma once

#include <memory>
#include <string>

#include "core/types.h"
#include "drivers/cuda_api.h"

namespace tent {

class Cuda {
 public:
  // Opens the library, once per process: later calls return what the first one found, and another
  // library is tried only where there was none. Null, with the reason and what to do in `why`,
  // where there is no driver or no GPU.
  static const Cuda* load(const std::string& library, std::string& why);
  // What load() found before, else what it finds under the usual name.
  static const Cuda* load_once(std::string& why);
  // What load() found before; null: nobody asked.
  static const Cuda* loaded();

  const CudaApi& api() const { return api_; }
  int device_count() const { return devices_; }
  std::string uuid(int device) const;  // 32 hex digits; "" where the driver does not say
  // The same for all processes that see this GPU, under whatever number; 0: the driver is silent.
  std::uint64_t key(int device) const;
  // Why memory is not this device's; "" where it is.
  std::string why_not_on(int device, std::uint64_t address, std::uint64_t bytes) const;
  // Whose memory an address is; kHost where the driver knows of no GPU's.
  int device_of(std::uint64_t address) const;
  // Whether copies that run on a device can read another one's memory.
  bool can_read(int device, int other) const;
  // Ok, or what failed in words.
  Status check(CudaResult result, const std::string& doing) const;

 private:
  Cuda() = default;
  CudaApi api_{};
  int devices_ = 0;
};

// One device's primary context, as torch uses it, kept alive as long as this lives.
class Gpu {
 public:
  static std::unique_ptr<Gpu> open(const Cuda& cuda, int device, Status& status);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const Cuda& cuda() const { return cuda_; }
  const CudaApi& api() const { return cuda_.api(); }
  int device() const { return device_; }
  CudaContext context() const { return context_; }
  std::uint64_t key() const { return key_; }  // Cuda::key() of the device
  // After it, what an RDMA device has written into the GPU's memory is seen by all work that is
  // queued from here on. The context is current. Costs nothing where the GPU orders such writes.
  Status settle_writes() const;

 private:
  Gpu(const Cuda& cuda, int device) : cuda_(cuda), device_(device) {}
  const Cuda& cuda_;
  const int device_;
  CudaContext context_ = nullptr;
  std::uint64_t key_ = 0;
  bool orders_writes_ = false, flushes_ = false;
};

// Makes the device's context current for as long as it lives, and lets this thread make calls that
// would otherwise break a graph capture of another thread, though they have nothing to do with it.
class OnGpu {
 public:
  explicit OnGpu(const Gpu& gpu);
  ~OnGpu();
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;

 private:
  const CudaApi& api_;
  int mode_ = kCudaCaptureModeRelaxed;
};

}  // namespace tent
