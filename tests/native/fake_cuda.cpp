// Stage: tests. A libcuda that has no GPU: "device" memory that the host cannot touch (a second
// mapping, which only the fake uses, holds the bytes), streams that are threads, and copies that
// take the time of a model and happen at its very end. It fails on demand. Functions are exported
// under libcuda's names; those that begin with fake_ are for the test.
// What always holds: whoever touches device memory from the host, copies with page-locked memory
// that is none, or without a context, is told.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
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

using tent::CudaAddress;
using tent::CudaContext;
using tent::CudaDevice;
using tent::CudaEvent;
using tent::CudaResult;
using tent::CudaStream;
using tent::CudaUuid;
using tent::now_ns;
using tent::TimeNs;

namespace {
constexpr int kDevices = 2;
constexpr CudaResult kInvalidValue = 1, kInvalidContext = 201, kIllegalAddress = 700;
}  // namespace

struct CUctx_st {
  int device = 0, retained = 0;
  TimeNs engine_free[2] = {0, 0};  // into, out of
  TimeNs busy[2] = {0, 0};
  bool broken = false;
};

struct CUevent_st {
  std::uint64_t recorded = 0, reached = 0;
};

struct CUstream_st {
  explicit CUstream_st(CUctx_st& of) : context(of), worker([this] { run(); }) { worker.detach(); }
  void run();
  CUctx_st& context;
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
  std::map<std::string, std::uint64_t> calls;
  double rate[2] = {0, 0};  // bytes per second; 0: no time
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
  World& w = world();
  ++w.calls[function];
  const auto failure = w.failures.find(function);
  if (failure == w.failures.end()) return 0;
  if (failure->second.first-- > 0) return 0;
  const CudaResult result = failure->second.second;
  w.failures.erase(failure);
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
  const auto& pinned = world().pinned;
  auto found = pinned.upper_bound(address);
  if (found == pinned.begin()) return false;
  --found;
  return address + bytes <= found->first + found->second;
}

CUstream_st* stream_of(CudaStream stream) {
  if (stream != nullptr) return stream;
  const int device = current.back()->device;
  CUstream_st*& legacy = world().legacy[device];
  if (legacy == nullptr) world().streams.push_back(legacy = new CUstream_st(*current.back()));
  return legacy;
}

void push(CudaStream stream, std::function<void()> work) {
  stream->queue.push_back(std::move(work));
  stream->wanted.notify_one();
}

void sleep_until(TimeNs time) {
  const timespec until{time / tent::kSecond, long(time % tent::kSecond)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) != 0) {
  }
}

// The copy engine of a direction serves one copy at a time, and the bytes move when it is over.
CudaResult copy(CudaAddress gpu, void* host, std::size_t bytes, CudaStream given, bool into) {
  World& w = world();
  CudaAddress base = 0;
  const Allocation* memory = find(gpu, bytes, base);
  if (current.empty()) return kInvalidContext;
  if (current.back()->broken) return kIllegalAddress;
  if (memory == nullptr || !is_pinned(host, bytes)) return kInvalidValue;
  CUstream_st* stream = stream_of(given);
  std::uint8_t* shadow = memory->shadow + (gpu - base);
  push(stream, [=, &w] {
    CUctx_st& context = stream->context;
    TimeNs done = 0;
    {
      const std::lock_guard lock(w.mutex);
      const double rate = w.rate[into ? 0 : 1];
      const TimeNs work = w.latency + (rate > 0 ? TimeNs(double(bytes) / rate * 1e9) : 0);
      TimeNs& free = context.engine_free[into ? 0 : 1];
      done = free = std::max(now_ns(), free) + work;
      context.busy[into ? 0 : 1] += work;
      if (w.jitter > 0) done += TimeNs(w.random() % std::uint64_t(w.jitter));
    }
    if (done > now_ns()) sleep_until(done);
    const std::lock_guard lock(w.mutex);
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

#define BEGIN(name)                           \
  const std::lock_guard lock(world().mutex);  \
  if (const CudaResult wrong = asked(name)) { \
    return wrong;                             \
  }

// ---- what libcuda has ---------------------------------------------------------------------------

EXPORT CudaResult cuInit(unsigned) {
  BEGIN("cuInit");
  for (int i = 0; i < kDevices; ++i) world().contexts[i].device = i;
  return 0;
}
EXPORT CudaResult cuGetErrorString(CudaResult result, const char** text) {
  static const std::map<CudaResult, const char*> texts{
      {1, "invalid argument"}, {2, "out of memory"}, {700, "an illegal memory access"}};
  const auto found = texts.find(result);
  *text = found == texts.end() ? "some error" : found->second;
  return 0;
}
EXPORT CudaResult cuDeviceGetCount(int* count) {
  BEGIN("cuDeviceGetCount");
  *count = kDevices;
  return 0;
}
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
  BEGIN("cuDevicePrimaryCtxRelease");
  --world().contexts[device].retained;
  return 0;
}
EXPORT CudaResult cuCtxPushCurrent_v2(CudaContext context) {
  current.push_back(context);
  return 0;
}
EXPORT CudaResult cuCtxPopCurrent_v2(CudaContext* context) {
  if (current.empty()) return kInvalidContext;
  *context = current.back();
  current.pop_back();
  return 0;
}
EXPORT CudaResult cuThreadExchangeStreamCaptureMode(int* mode) {
  static thread_local int now = 0;
  std::swap(*mode, now);
  return 0;
}
EXPORT CudaResult cuStreamCreate(CudaStream* stream, unsigned) {
  BEGIN("cuStreamCreate");
  if (current.empty()) return kInvalidContext;
  world().streams.push_back(*stream = new CUstream_st(*current.back()));
  return 0;
}
EXPORT CudaResult cuStreamDestroy_v2(CudaStream stream) {
  BEGIN("cuStreamDestroy");
  std::erase(world().streams, stream);
  stream->ended = true;
  stream->wanted.notify_one();
  return 0;
}
EXPORT CudaResult cuStreamSynchronize(CudaStream given) {
  std::unique_lock lock(world().mutex);
  CUstream_st* stream = stream_of(given);
  while (!stream->queue.empty() || stream->busy) {
    lock.unlock();
    sleep_until(now_ns() + 100 * tent::kMicrosecond);
    lock.lock();
  }
  return 0;
}
EXPORT CudaResult cuStreamIsCapturing(CudaStream given, int* status) {
  BEGIN("cuStreamIsCapturing");
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
  for (const CUctx_st& context : world().contexts) {
    if (context.broken) return kIllegalAddress;
  }
  return event->reached == event->recorded ? 0 : tent::kCudaNotReady;
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
  std::size_t total = bytes;
  for (const auto& [address, size] : world().pinned) total += size;
  if (total > world().pinned_max) return 2;
  world().pinned[reinterpret_cast<std::uint64_t>(memory)] = bytes;
  return 0;
}
EXPORT CudaResult cuMemHostUnregister(void* memory) {
  BEGIN("cuMemHostUnregister");
  return world().pinned.erase(reinterpret_cast<std::uint64_t>(memory)) == 1 ? 0 : 713;
}
EXPORT CudaResult cuPointerGetAttribute(void* value, int attribute, CudaAddress address) {
  BEGIN("cuPointerGetAttribute");
  CudaAddress base = 0;
  const Allocation* memory = find(address, 1, base);
  if (memory == nullptr) return kInvalidValue;
  const int wanted = attribute == tent::kCudaPointerMemoryType ? int(tent::kCudaMemoryTypeDevice)
                                                               : memory->device;
  std::memcpy(value, &wanted, sizeof wanted);
  return 0;
}

// ---- what the test does -------------------------------------------------------------------------

EXPORT CudaAddress fake_alloc(int device, std::size_t bytes) {
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
// The addresses stay reserved, so that no later memory is taken for this.
EXPORT void fake_free(CudaAddress address) {
  const std::lock_guard lock(world().mutex);
  world().memory.erase(address);
}
EXPORT void* fake_shadow(CudaAddress address) {
  const std::lock_guard lock(world().mutex);
  CudaAddress base = 0;
  const Allocation* memory = find(address, 1, base);
  return memory == nullptr ? nullptr : memory->shadow + (address - base);
}
EXPORT void fake_model(double into, double out_of, double latency_s, double jitter_s) {
  const std::lock_guard lock(world().mutex);
  world().rate[0] = into;
  world().rate[1] = out_of;
  world().latency = TimeNs(latency_s * 1e9);
  world().jitter = TimeNs(jitter_s * 1e9);
}
EXPORT void fake_fail(const char* function, int after, CudaResult result) {
  const std::lock_guard lock(world().mutex);
  world().failures[function] = {after, result};
}
EXPORT void fake_break(int device, int broken) {
  const std::lock_guard lock(world().mutex);
  world().contexts[device].broken = broken != 0;
}
EXPORT void fake_limit_pinned(std::size_t bytes) {
  const std::lock_guard lock(world().mutex);
  world().pinned_max = bytes;
}
EXPORT std::uint64_t fake_pinned() {
  const std::lock_guard lock(world().mutex);
  std::uint64_t total = 0;
  for (const auto& [address, size] : world().pinned) total += size;
  return total;
}
EXPORT std::uint64_t fake_calls(const char* function) {
  const std::lock_guard lock(world().mutex);
  return world().calls[function];
}
EXPORT int fake_contexts(int device) {
  const std::lock_guard lock(world().mutex);
  return world().contexts[device].retained;
}
EXPORT double fake_busy(int device, int out_of) {
  const std::lock_guard lock(world().mutex);
  return double(world().contexts[device].busy[out_of]) * 1e-9;
}
// A stream of the caller's, as torch's are.
EXPORT CudaStream fake_stream(int device) {
  const std::lock_guard lock(world().mutex);
  auto* made = new CUstream_st(world().contexts[device]);
  world().streams.push_back(made);
  return made;
}
EXPORT void fake_capture(CudaStream stream, int status) {
  const std::lock_guard lock(world().mutex);
  stream->capturing = status;
}
// A kernel that takes so long, and then fills memory with a byte.
EXPORT void fake_kernel(CudaStream stream, double seconds, CudaAddress address, std::size_t bytes,
                        int value) {
  const std::lock_guard lock(world().mutex);
  push(stream, [=] {
    sleep_until(now_ns() + TimeNs(seconds * 1e9));
    const std::lock_guard lock(world().mutex);
    CudaAddress base = 0;
    const Allocation* memory = find(address, bytes, base);
    if (memory != nullptr) std::memset(memory->shadow + (address - base), value, bytes);
  });
}
// Whether anything is queued on any stream.
EXPORT int fake_working() {
  const std::lock_guard lock(world().mutex);
  const auto& streams = world().streams;
  return std::any_of(streams.begin(), streams.end(),
                     [](const CUstream_st* s) { return s->busy || !s->queue.empty(); });
}
