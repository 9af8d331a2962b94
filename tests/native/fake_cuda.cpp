// Stage: tests. A libcuda that has no GPU: "device" memory that the host cannot touch (a second
// mapping, which only the fake uses, holds the bytes), streams that are threads, and copies that
// take the time of a model and happen at its very end. It fails on demand. Its functions are
// exported under libcuda's names, for dlopen; as a Python module it is what the test drives.
// What always holds: whoever touches device memory from the host, copies with page-locked memory
// that is none, or without a context, is told.
#include "fake_cuda.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

World& world() {
  static auto* one = new World;  // streams outlive main()
  return *one;
}

thread_local std::vector<CUctx_st*> current;

// Called with the lock held.
CudaResult asked(const char* function) {
  ++world().calls[function];
  if (world().poison != 0) return world().poison;
  auto& failures = world().failures;
  const auto failure = failures.find(function);
  if (failure == failures.end() || failure->second.first-- > 0) return 0;
  const CudaResult result = failure->second.second;
  failures.erase(failure);
  return result;
}

Allocation* find(CudaAddress address, std::size_t bytes, CudaAddress& base) {
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

CUstream_st* stream_of(CudaStream stream) {
  if (stream != nullptr) return stream;
  return world().legacy[current.back()->device];
}

void push(CudaStream stream, std::function<void()> work) {
  stream->queue.push_back(std::move(work));
  stream->wanted.notify_one();
}

namespace {

std::size_t pinned_bytes() {
  std::size_t total = 0;
  for (const auto& [address, size] : world().pinned) total += size;
  return total;
}

void sleep_until(TimeNs time) {
  const timespec until{time / kSecond, long(time % kSecond)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) != 0) {
  }
}

}  // namespace

// On a stream's thread: the copy engine of a direction serves one at a time, and the bytes move
// when its time is over.
void carry_out(Way way, std::size_t bytes, CUctx_st& context, const std::function<void()>& move) {
  World& w = world();
  TimeNs done = 0;
  {
    const std::lock_guard lock(w.mutex);
    const double rate = w.rate[way];
    const TimeNs work = w.latency + (rate > 0 ? TimeNs(double(bytes) / rate * 1e9) : 0);
    TimeNs& free = context.engine_free[way];
    done = free = std::max(now_ns(), free) + work;
    context.copied[way] += bytes;
    if (context.first[way] == 0) context.first[way] = now_ns();
    if (w.jitter > 0) done += TimeNs(w.random() % std::uint64_t(w.jitter));
  }
  if (done > now_ns()) sleep_until(done);
  const std::lock_guard lock(w.mutex);
  context.last[way] = now_ns();
  move();
}

CudaResult copy(Way way, std::uint8_t* to, const std::uint8_t* from, std::size_t bytes,
                CudaStream given) {
  CUctx_st& context = *current.back();
  push(stream_of(given),
       [=, &context] { carry_out(way, bytes, context, [=] { std::memmove(to, from, bytes); }); });
  return 0;
}

namespace {

CudaResult copy_host(CudaAddress gpu, void* host, std::size_t bytes, CudaStream stream, Way way) {
  CudaAddress base = 0;
  const Allocation* memory = find(gpu, bytes, base);
  if (current.empty()) return kInvalidContext;
  if (memory == nullptr || !is_pinned(host, bytes)) return kInvalidValue;
  std::uint8_t* shadow = memory->shadow + (gpu - base);
  auto* other = static_cast<std::uint8_t*>(host);
  return way == kInto ? copy(way, shadow, other, bytes, stream)
                      : copy(way, other, shadow, bytes, stream);
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
EXPORT CudaResult cuDeviceGetPCIBusId(char* text, int bytes, CudaDevice device) {
  std::snprintf(text, std::size_t(bytes), "0000:%02X:00.0", 0x17 + device);
  return 0;
}
EXPORT CudaResult cuDeviceGetUuid_v2(CudaUuid* uuid, CudaDevice device) {
  std::memset(uuid->bytes, 0x10 + world().order[device], sizeof uuid->bytes);
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
EXPORT CudaResult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, 0;
}
EXPORT CudaResult cuStreamCreateWithPriority(CudaStream* stream, unsigned, int) {
  BEGIN("cuStreamCreateWithPriority");
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
EXPORT CudaResult cuStreamQuery(CudaStream given) {
  if (current.empty()) return kInvalidContext;
  CUstream_st* stream = nullptr;
  {
    const std::lock_guard lock(world().mutex);
    stream = stream_of(given);
  }
  return stream->works() ? kCudaNotReady : 0;
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
  return copy_host(to, const_cast<void*>(from), bytes, stream, kInto);
}
EXPORT CudaResult cuMemcpyDtoHAsync_v2(void* to, CudaAddress from, std::size_t bytes,
                                       CudaStream stream) {
  BEGIN("cuMemcpyDtoHAsync");
  return copy_host(from, to, bytes, stream, kOutOf);
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
  switch (attribute) {
    case kCudaPointerMemoryType:
      return *static_cast<int*>(value) = int(kCudaMemoryTypeDevice), 0;
    case kCudaPointerBufferId:
      return *static_cast<std::uint64_t*>(value) = memory->number, 0;
    case kCudaPointerIpcCapable:
      return *static_cast<int*>(value) = memory->shareable ? 1 : 0, 0;
    default:
      return *static_cast<int*>(value) = memory->device, 0;
  }
}

// ---- what torch's side of CUDA needs beside (torch_on_fake_cuda.cpp)
// ------------------------------

EXPORT CudaResult cuStreamWaitEvent(CudaStream given, CudaEvent event, unsigned) {
  const std::lock_guard lock(world().mutex);
  push(stream_of(given), [event, number = event->recorded] {
    const auto is_there = [&] {
      const std::lock_guard lock(world().mutex);
      return event->reached >= number;
    };
    while (!is_there()) sleep_until(now_ns() + 100 * kMicrosecond);
  });
  return 0;
}
EXPORT CudaResult cuLaunchHostFunc(CudaStream given, void (*call)(void*), void* data) {
  const std::lock_guard lock(world().mutex);
  push(stream_of(given), [call, data] { call(data); });
  return 0;
}
EXPORT CudaAddress fake_allocate(int device, std::size_t bytes) {
  return allocate(device, bytes, true);
}
// Where the bytes really are.
EXPORT std::uint64_t fake_shadow(CudaAddress address) {
  const std::lock_guard lock(world().mutex);
  CudaAddress base = 0;
  const Allocation* memory = find(address, 1, base);
  return memory ? reinterpret_cast<std::uint64_t>(memory->shadow + (address - base)) : 0;
}

// ---- what the test does -------------------------------------------------------------------------

namespace {

void model(double into, double out_of, double across, double latency_s, double jitter_s) {
  const std::lock_guard lock(world().mutex);
  world().rate[kInto] = into;
  world().rate[kOutOf] = out_of;
  world().rate[kAcross] = across;
  world().latency = TimeNs(latency_s * 1e9);
  world().jitter = TimeNs(jitter_s * 1e9);
  for (CUctx_st& context : world().contexts) {
    for (auto& first : context.first) first = 0;
  }
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
    std::memset(reinterpret_cast<void*>(fake_shadow(address)), value, bytes);
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
  m.def("gpudirect", [&, locked](bool dmabuf, bool orders, bool flushes) {
    locked([&] { w.dmabuf = dmabuf, w.orders = orders, w.flushes = flushes; });
  });
  m.def("shadow_function", [] { return reinterpret_cast<std::uint64_t>(&fake_shadow); });
  m.def("spoil", [&, locked](bool on) { locked([&] { w.spoils = on; }); });
  m.def("poisoned", [&, locked] { return locked([&] { return w.poison != 0; }); });
  m.def("replace", &replace);
  m.def("peers", [&, locked](bool can) { locked([&] { w.peers = can; }); });
  m.def("order",
        [&, locked](int first) { locked([&] { w.order[0] = first, w.order[1] = 1 - first; }); });
  m.def("calls",
        [&, locked](const std::string& name) { return locked([&] { return w.calls[name]; }); });
  m.def("opened", [&, locked] {  // allocations of other processes that are open here
    return locked([&] {
      return std::count_if(w.memory.begin(), w.memory.end(),
                           [](const auto& known) { return known.second.opened > 0; });
    });
  });
  // The addresses stay reserved, so that no later memory is taken for this.
  m.def("free", [&, locked](CudaAddress at) { locked([&] { return w.memory.erase(at); }); });
  m.def("shadow", &fake_shadow);
  m.def("model", &model);
  m.def("fail", [&, locked](const std::string& function, int after, CudaResult result) {
    locked([&] { w.failures[function] = {after, result}; });
  });
  m.def("limit_pinned", [&, locked](std::size_t bytes) { locked([&] { w.pinned_max = bytes; }); });
  m.def("pinned", [locked] { return locked(pinned_bytes); });
  m.def("contexts", [&](int device) { return w.contexts[device].retained; });
  m.def("copied", [&](int device, int way) { return w.contexts[device].copied[way].load(); });
  m.def("span", [&](int device, int way) {
    const CUctx_st& c = w.contexts[device];
    return std::pair(double(c.first[way]) * 1e-9, double(c.last[way]) * 1e-9);
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
