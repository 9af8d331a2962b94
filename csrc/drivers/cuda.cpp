// Stage: drivers. See cuda.h.
#include "drivers/cuda.h"

#include <dlfcn.h>

#include <mutex>
#include <utility>

#include "core/layout.h"

namespace tent {
namespace {

struct Found {
  std::mutex mutex;
  std::string library;  // the last that was asked for
  const Cuda* cuda = nullptr;
  std::string why;
};

Found& found() {
  static auto* one = new Found;  // never destroyed: threads may outlive main()
  return *one;
}

template <class Function>
void resolve(void* library, Function& function, const char* name, std::string& missing) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr && missing.empty()) missing = name;
}

}  // namespace

const Cuda* Cuda::load(const std::string& library, std::string& why) {
  Found& known = found();
  const std::lock_guard lock(known.mutex);
  if (known.cuda == nullptr && known.library != library) {
    known.library = library;
    std::unique_ptr<Cuda> cuda(new Cuda);
    void* opened = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {
      const char* reason = ::dlerror();
      known.why = "there is no CUDA driver here (" + std::string(reason ? reason : library) +
                  "): install NVIDIA's driver, or give the container access to it";
    } else {
      std::string missing;
      each_cuda_function(cuda->api_, [&](auto& function, const char* name) {
        resolve(opened, function, name, missing);
      });
      std::string absent;  // is no reason
      each_newer_cuda_function(cuda->api_, [&](auto& function, const char* name) {
        resolve(opened, function, name, absent);
      });
      Status status;
      if (!missing.empty()) {
        status = {Code::Failed, "the CUDA driver has no " + missing + ": it is older than 11.4",
                  ""};
      }
      if (status.ok()) status = cuda->check(cuda->api_.init(0), "starting the CUDA driver");
      if (status.ok()) {
        status = cuda->check(cuda->api_.device_count(&cuda->devices_), "counting the GPUs");
      }
      if (status.ok() && cuda->devices_ == 0) {
        status = {Code::Failed, "the CUDA driver sees no GPU: look at CUDA_VISIBLE_DEVICES", ""};
      }
      known.why = status.text;
      if (status.ok()) known.cuda = cuda.release();  // for the life of the process
    }
  }
  why = known.why;
  return known.cuda;
}

const Cuda* Cuda::load_once(std::string& why) {
  const Cuda* before = loaded();
  return before != nullptr ? before : load("libcuda.so.1", why);
}

const Cuda* Cuda::loaded() {
  Found& known = found();
  const std::lock_guard lock(known.mutex);
  return known.cuda;
}

std::string Cuda::uuid(int device) const {
  CudaDevice id = 0;
  CudaUuid uuid{};
  if (api_.device_get(&id, device) != kCudaSuccess || api_.device_uuid(&uuid, id) != kCudaSuccess) {
    return "";
  }
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (const char byte : uuid.bytes) {
    text += digits[std::uint8_t(byte) >> 4];
    text += digits[std::uint8_t(byte) & 15];
  }
  return text;
}

std::uint64_t Cuda::key(int device) const {
  const std::string digits = uuid(device);
  std::uint64_t sum = 0xcbf29ce484222325;  // FNV-1a
  for (const char digit : digits) sum = (sum ^ std::uint8_t(digit)) * 0x100000001b3;
  return digits.empty() ? 0 : sum;
}

int Cuda::device_of(std::uint64_t address) const {
  unsigned kind = 0;
  int device = 0;
  if (api_.pointer_attribute(&kind, kCudaPointerMemoryType, address) != kCudaSuccess ||
      kind != kCudaMemoryTypeDevice ||
      api_.pointer_attribute(&device, kCudaPointerDeviceOrdinal, address) != kCudaSuccess) {
    return kHost;
  }
  return device;
}

std::string Cuda::why_not_on(int device, std::uint64_t address, std::uint64_t bytes) const {
  if (device < 0 || device >= devices_) {
    return "cuda:" + std::to_string(device) + " is not visible to this process, which sees " +
           std::to_string(devices_) + " GPU(s)";
  }
  if (bytes == 0) return "";
  for (const std::uint64_t each : {address, address + bytes - 1}) {
    const int found = device_of(each);
    if (found == device) continue;
    return "memory that should be on cuda:" + std::to_string(device) +
           (found == kHost ? " is not known to the CUDA driver: was its storage freed or resized?"
                           : " is on cuda:" + std::to_string(found));
  }
  return "";
}

bool Cuda::can_read(int device, int other) const {
  if (device == other) return true;
  CudaDevice ours = 0, theirs = 0;
  int can = 0;
  return api_.device_get(&ours, device) == kCudaSuccess &&
         api_.device_get(&theirs, other) == kCudaSuccess &&
         api_.can_access_peer(&can, ours, theirs) == kCudaSuccess && can != 0;
}

Status Cuda::check(CudaResult result, const std::string& doing) const {
  if (result == kCudaSuccess) return {};
  const char* text = nullptr;
  if (api_.error_string(result, &text) != kCudaSuccess || text == nullptr) text = "unknown error";
  return {Code::Failed,
          doing + " failed: the CUDA driver says \"" + text + "\" (" + std::to_string(result) + ")",
          ""};
}

std::unique_ptr<Gpu> Gpu::open(const Cuda& cuda, int device, Status& status) {
  const std::string name = "cuda:" + std::to_string(device);
  if (device < 0 || device >= cuda.device_count()) {
    status = {Code::Failed,
              name + " is not visible to this process, which sees " +
                  std::to_string(cuda.device_count()) + " GPU(s)",
              ""};
    return nullptr;
  }
  std::unique_ptr<Gpu> gpu(new Gpu(cuda, device));
  CudaDevice id = 0;
  status = cuda.check(cuda.api().device_get(&id, device), "opening " + name);
  if (status.ok()) {
    status =
        cuda.check(cuda.api().primary_retain(&gpu->context_, id), "using the context of " + name);
  }
  if (!status.ok()) return nullptr;
  gpu->key_ = cuda.key(device);
  int ordering = 0, options = 0;
  const auto ask = [&](int* value, int which) {
    return cuda.api().device_attribute(value, which, id) == kCudaSuccess;
  };
  gpu->orders_writes_ =
      ask(&ordering, kCudaRdmaWritesOrdering) && ordering >= kCudaRdmaOrderedForOwner;
  gpu->flushes_ = cuda.api().flush_rdma_writes != nullptr && ask(&options, kCudaRdmaFlushOptions) &&
                  (options & kCudaRdmaFlushByHost) != 0;
  return gpu;
}

Status Gpu::settle_writes() const {
  if (orders_writes_) return {};
  if (!flushes_) {
    return {Code::Failed, "the GPU does not say when writes of RDMA devices are seen by it", ""};
  }
  return cuda_.check(api().flush_rdma_writes(kCudaFlushCurrentContext, kCudaFlushToOwner),
                     "flushing what an RDMA device has written");
}

Gpu::~Gpu() {
  CudaDevice id = 0;
  if (context_ != nullptr && api().device_get(&id, device_) == kCudaSuccess) {
    api().primary_release(id);
  }
}

OnGpu::OnGpu(const Gpu& gpu) : api_(gpu.api()) {
  api_.push_current(gpu.context());
  api_.capture_mode(&mode_);
}

OnGpu::~OnGpu() {
  CudaContext popped = nullptr;
  api_.capture_mode(&mode_);
  api_.pop_current(&popped);
}

}  // namespace tent
