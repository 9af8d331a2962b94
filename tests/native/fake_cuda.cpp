// Stage: tests. A libcuda that has no GPU: "device" memory that the host cannot touch (a second
// mapping, which only the fake uses, holds the bytes), streams that are threads, and copies that
// take the time of a model and happen at its very end. It fails on demand. Its functions are
// exported under libcuda's names, for dlopen; as a Python module it is what the test drives.
// What always holds: whoever touches device memory from the host, copies with page-locked memory
// that is none, or without a context, is told.
#include <pybind11/stl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "drivers/cuda_api.h"
#include "engine/clock.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace tent;

constexpr int kDevices = 2;
constexpr CudaResult kInvalidValue = 1, kInvalidContext = 201;

struct CUctx_st {
  int device = 0, retained = 0;
  TimeNs engine_free[2] = {0, 0};  // into, out of
  std::atomic<std::uint64_t> copied[2] = {0, 0};
  std::atomic<TimeNs> first[2] = {0, 0}, last[2] = {0, 0};  // when copies began and ended
};

struct CUevent_st {
  std::uint64_t recorded = 0, reached = 0;
};

struct CUstream_st {
  CUstream_st() : worker([this] { run(); }) { worker.detach(); }
  void run();
  bool works() const;
  std::deque<std::function<void()>> queue;
  std::condition_variable wanted;
  bool ended = false, busy = false;
  int capturing = 0;
  std::thread worker;
};

namespace {

struct Allocation {
  std::size_t bytes;
  std::uint8_t* shadow;
  int device;
};

struct World {
  std::mutex mutex;
  CUctx_st contexts[kDevices];
  CUstream_st* legacy[kDevices] = {nullptr, nullptr};
  std::vector<CUstream_st*> streams;
  std::map<CudaAddress, Allocation> memory;
  std::map<std::uint64_t, std::size_t> pinned;
  std::size_t pinned_max = SIZE_MAX;
  std::map<std::string, std::pair<int, CudaResult>> failures;  // after so many calls
  double rate[2] = {0, 0};                                     // bytes per second; 0: no time
  TimeNs latency = 0, jitter = 0;
  std::mt19937_64 random{1};
};

World& world() {
  static auto* one = new World;  // streams outlive main()
  return *one;
}

thread_local std::vector<CUctx_st*> current;

// Called with the lock held.
CudaResult asked(const char* function) {
  auto& failures = world().failures;
  const auto failure = failures.find(function);
  if (failure == failures.end() || failure->second.first-- > 0) return 0;
  const CudaResult result = failure->second.second;
  failures.erase(failure);
  return result;
}

const Allocation* find(CudaAddress address, std::size_t bytes, CudaAddress& base) {
  World& w = world();
  auto found = w.memory.upper_bound(address);
  if (found == w.memory.begin()) return nullptr;
  --found;
  base = found->first;
  const std::size_t offset = std::size_t(address - base);
  return offset + bytes <= found->second.bytes && offset < found->second.bytes ? &found->second
                                                                               : nullptr;
}

bool is_pinned(const void* host, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uint64_t>(host);
  return std::any_of(world().pinned.begin(), world().pinned.end(), [&](const auto& block) {
    return block.first <= address && address + bytes <= block.first + block.second;
  });
}

std::size_t pinned_bytes() {
  std::size_t total = 0;
  for (const auto& [address, size] : world().pinned) total += size;
  return total;
}

CUstream_st* stream_of(CudaStream stream) {
  if (stream != nullptr) return stream;
  return world().legacy[current.back()->device];
}

void push(CudaStream stream, std::function<void()> work) {
  stream->queue.push_back(std::move(work));
  stream->wanted.notify_one();
}

void sleep_until(TimeNs time) {
  const timespec until{time / kSecond, long(time % kSecond)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) != 0) {
  }
}

// The copy engine of a direction serves one copy at a time, and the bytes move when it is over.
CudaResult copy(CudaAddress gpu, void* host, std::size_t bytes, CudaStream given, bool into) {
  World& w = world();
  CudaAddress base = 0;
  const Allocation* memory = find(gpu, bytes, base);
  if (current.empty()) return kInvalidContext;
  if (memory == nullptr || !is_pinned(host, bytes)) return kInvalidValue;
  CUctx_st& context = *current.back();
  std::uint8_t* shadow = memory->shadow + (gpu - base);
  push(stream_of(given), [=, &w, &context] {
    TimeNs done = 0;
    {
      const std::lock_guard lock(w.mutex);
      const double rate = w.rate[into ? 0 : 1];
      const TimeNs work = w.latency + (rate > 0 ? TimeNs(double(bytes) / rate * 1e9) : 0);
      TimeNs& free = context.engine_free[into ? 0 : 1];
      done = free = std::max(now_ns(), free) + work;
      context.copied[into ? 0 : 1] += bytes;
      if (context.first[into ? 0 : 1] == 0) context.first[into ? 0 : 1] = now_ns();
      if (w.jitter > 0) done += TimeNs(w.random() % std::uint64_t(w.jitter));
    }
    if (done > now_ns()) sleep_until(done);
    const std::lock_guard lock(w.mutex);
    context.last[into ? 0 : 1] = now_ns();
    into ? std::memcpy(shadow, host, bytes) : std::memcpy(host, shadow, bytes);
  });
  return 0;
}

}  // namespace

void CUstream_st::run() {
  World& w = world();
  std::unique_lock lock(w.mutex);
  while (true) {
    wanted.wait(lock, [&] { return ended || !queue.empty(); });
    if (queue.empty()) return delete this;
    const std::function<void()> work = std::move(queue.front());
    queue.pop_front();
    busy = true;
    lock.unlock();
    work();
    lock.lock();
    busy = false;
  }
}

bool CUstream_st::works() const {
  const std::lock_guard lock(world().mutex);
  return busy || !queue.empty();
}

#define BEGIN(name)                           \
  const std::lock_guard lock(world().mutex);  \
  if (const CudaResult wrong = asked(name)) { \
    return wrong;                             \
  }

// ---- what libcuda has ---------------------------------------------------------------------------

EXPORT CudaResult cuInit(unsigned) {
  BEGIN("cuInit");
  for (int i = 0; i < kDevices; ++i) {
    world().contexts[i].device = i;
    world().streams.push_back(world().legacy[i] = new CUstream_st);
  }
  return 0;
}
EXPORT CudaResult cuGetErrorString(CudaResult result, const char** text) {
  *text = result == 2 ? "out of memory" : "some error";
  return 0;
}
EXPORT CudaResult cuDeviceGetCount(int* count) { return *count = kDevices, 0; }
EXPORT CudaResult cuDeviceGet(CudaDevice* device, int ordinal) {
  *device = ordinal;
  return ordinal < 0 || ordinal >= kDevices ? 101 : 0;
}
EXPORT CudaResult cuDeviceGetUuid_v2(CudaUuid* uuid, CudaDevice device) {
  std::memset(uuid->bytes, 0x10 + device, sizeof uuid->bytes);
  return 0;
}
EXPORT CudaResult cuDevicePrimaryCtxRetain(CudaContext* context, CudaDevice device) {
  BEGIN("cuDevicePrimaryCtxRetain");
  *context = &world().contexts[device];
  ++(*context)->retained;
  return 0;
}
EXPORT CudaResult cuDevicePrimaryCtxRelease_v2(CudaDevice device) {
  const std::lock_guard lock(world().mutex);
  --world().contexts[device].retained;
  return 0;
}
EXPORT CudaResult cuCtxPushCurrent_v2(CudaContext context) { return current.push_back(context), 0; }
EXPORT CudaResult cuCtxPopCurrent_v2(CudaContext* context) {
  if (current.empty()) return kInvalidContext;
  *context = current.back();
  current.pop_back();
  return 0;
}
EXPORT CudaResult cuThreadExchangeStreamCaptureMode(int* mode) {
  static thread_local int now = 0;
  return std::swap(*mode, now), 0;
}
EXPORT CudaResult cuStreamCreate(CudaStream* stream, unsigned) {
  BEGIN("cuStreamCreate");
  if (current.empty()) return kInvalidContext;
  world().streams.push_back(*stream = new CUstream_st);
  return 0;
}
EXPORT CudaResult cuStreamDestroy_v2(CudaStream stream) {
  const std::lock_guard lock(world().mutex);
  std::erase(world().streams, stream);
  stream->ended = true;
  stream->wanted.notify_one();
  return 0;
}
EXPORT CudaResult cuStreamSynchronize(CudaStream stream) {
  while (stream->works()) sleep_until(now_ns() + 100 * kMicrosecond);
  return 0;
}
EXPORT CudaResult cuStreamIsCapturing(CudaStream given, int* status) {
  const std::lock_guard lock(world().mutex);
  if (current.empty()) return kInvalidContext;
  *status = stream_of(given)->capturing;
  return 0;
}
EXPORT CudaResult cuEventCreate(CudaEvent* event, unsigned) {
  BEGIN("cuEventCreate");
  *event = new CUevent_st;
  return 0;
}
EXPORT CudaResult cuEventRecord(CudaEvent event, CudaStream given) {
  BEGIN("cuEventRecord");
  if (current.empty()) return kInvalidContext;
  const std::uint64_t number = ++event->recorded;
  push(stream_of(given), [event, number] {
    const std::lock_guard lock(world().mutex);
    event->reached = number;
  });
  return 0;
}
EXPORT CudaResult cuEventQuery(CudaEvent event) {
  BEGIN("cuEventQuery");
  return event->reached == event->recorded ? 0 : kCudaNotReady;
}
EXPORT CudaResult cuEventDestroy_v2(CudaEvent) { return 0; }  // a stream may still reach it
EXPORT CudaResult cuMemcpyHtoDAsync_v2(CudaAddress to, const void* from, std::size_t bytes,
                                       CudaStream stream) {
  BEGIN("cuMemcpyHtoDAsync");
  return copy(to, const_cast<void*>(from), bytes, stream, true);
}
EXPORT CudaResult cuMemcpyDtoHAsync_v2(void* to, CudaAddress from, std::size_t bytes,
                                       CudaStream stream) {
  BEGIN("cuMemcpyDtoHAsync");
  return copy(from, to, bytes, stream, false);
}
EXPORT CudaResult cuMemHostRegister_v2(void* memory, std::size_t bytes, unsigned) {
  BEGIN("cuMemHostRegister");
  if (current.empty()) return kInvalidContext;
  if (pinned_bytes() + bytes > world().pinned_max) return 2;
  world().pinned[reinterpret_cast<std::uint64_t>(memory)] = bytes;
  return 0;
}
EXPORT CudaResult cuMemHostUnregister(void* memory) {
  const std::lock_guard lock(world().mutex);
  return world().pinned.erase(reinterpret_cast<std::uint64_t>(memory)) == 1 ? 0 : 713;
}
EXPORT CudaResult cuPointerGetAttribute(void* value, int attribute, CudaAddress address) {
  const std::lock_guard lock(world().mutex);
  CudaAddress base = 0;
  const Allocation* memory = find(address, 1, base);
  if (memory == nullptr) return kInvalidValue;
  const bool kind = attribute == kCudaPointerMemoryType;
  return *static_cast<int*>(value) = kind ? int(kCudaMemoryTypeDevice) : memory->device, 0;
}

// ---- what the test does -------------------------------------------------------------------------

namespace {

CudaAddress allocate(int device, std::size_t bytes) {
  const std::size_t mapped = (bytes + 4095) / 4096 * 4096;
  const int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, off_t(mapped)) != 0) return 0;
  void* address = mmap(nullptr, mapped, PROT_NONE, MAP_SHARED, fd, 0);
  void* shadow = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  const std::lock_guard lock(world().mutex);
  const auto key = reinterpret_cast<CudaAddress>(address);
  world().memory[key] = {bytes, static_cast<std::uint8_t*>(shadow), device};
  return key;
}

// Where the bytes really are.
std::uint64_t shadow(CudaAddress address) {
  const std::lock_guard lock(world().mutex);
  CudaAddress base = 0;
  const Allocation* memory = find(address, 1, base);
  return memory ? reinterpret_cast<std::uint64_t>(memory->shadow + (address - base)) : 0;
}

void model(double into, double out_of, double latency_s, double jitter_s) {
  const std::lock_guard lock(world().mutex);
  world().rate[0] = into;
  world().rate[1] = out_of;
  world().latency = TimeNs(latency_s * 1e9);
  world().jitter = TimeNs(jitter_s * 1e9);
  for (CUctx_st& context : world().contexts) context.first[0] = context.first[1] = 0;
}

// A stream of the caller's, as torch's are.
std::uint64_t make_stream() {
  const std::lock_guard lock(world().mutex);
  world().streams.push_back(new CUstream_st);
  return reinterpret_cast<std::uint64_t>(world().streams.back());
}

// A kernel that takes so long, and then fills memory with a byte.
void kernel(std::uint64_t stream, double seconds, CudaAddress address, std::size_t bytes,
            int value) {
  const std::lock_guard lock(world().mutex);
  push(reinterpret_cast<CudaStream>(stream), [=] {
    sleep_until(now_ns() + TimeNs(seconds * 1e9));
    std::memset(reinterpret_cast<void*>(shadow(address)), value, bytes);
  });
}

}  // namespace

PYBIND11_MODULE(fake_cuda, m) {
  World& w = world();
  const auto locked = [&w](auto body) {
    const std::lock_guard lock(w.mutex);
    return body();
  };
  m.def("alloc", &allocate);
  // The addresses stay reserved, so that no later memory is taken for this.
  m.def("free", [&, locked](CudaAddress at) { locked([&] { return w.memory.erase(at); }); });
  m.def("shadow", &shadow);
  m.def("model", &model);
  m.def("fail", [&, locked](const std::string& function, int after, CudaResult result) {
    locked([&] { w.failures[function] = {after, result}; });
  });
  m.def("limit_pinned", [&, locked](std::size_t bytes) { locked([&] { w.pinned_max = bytes; }); });
  m.def("pinned", [locked] { return locked(pinned_bytes); });
  m.def("contexts", [&](int device) { return w.contexts[device].retained; });
  m.def("copied",
        [&](int device, bool out_of) { return w.contexts[device].copied[out_of].load(); });
  m.def("span", [&](int device, bool out_of) {
    const CUctx_st& c = w.contexts[device];
    return std::pair(double(c.first[out_of]) * 1e-9, double(c.last[out_of]) * 1e-9);
  });
  m.def("stream", &make_stream);
  m.def("capture", [](std::uint64_t stream, int status) {
    reinterpret_cast<CudaStream>(stream)->capturing = status;
  });
  m.def("kernel", &kernel);
  m.def("working", [&w] {  // whether anything is queued on any stream
    return std::any_of(w.streams.begin(), w.streams.end(), [](auto* s) { return s->works(); });
  });
}
