// Stage: tests. torch's side of CUDA for a torch that was built without it: streams, events and
// devices, an allocator and a few kernels, on the fake driver of fake_cuda.cpp. As a Python module
// it is what the tests drive.
// Kernels run on the stream's thread, on the real bytes, when their turn comes. Memory that was
// freed is spoiled in the order of the stream that it was taken for, and given out again.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "drivers/cuda_api.h"

namespace {

using namespace tent;

constexpr int kDevices = 2, kPool = 4;

struct Driver {  // of the fake
  CudaApi api;
  CudaResult (*wait_event)(CudaStream, CudaEvent, unsigned);
  CudaResult (*launch)(CudaStream, void (*)(void*), void*);
  CudaAddress (*allocate)(int, std::size_t);
  std::uint64_t (*shadow)(CudaAddress);
  CudaContext contexts[kDevices];
  CudaStream pool[kDevices][kPool];
};
Driver driver;
thread_local int device_now = 0;
thread_local std::array<c10::StreamId, kDevices> streams_now{};
std::atomic<unsigned> pool_turn{0};

class On {  // the driver's current context
 public:
  explicit On(int device) { driver.api.push_current(driver.contexts[device]); }
  ~On() {
    CudaContext popped;
    driver.api.pop_current(&popped);
  }
};

c10::Device device_at(int index) { return {c10::kCUDA, c10::DeviceIndex(index)}; }
c10::Stream stream_at(int device, c10::StreamId id) {
  return c10::Stream(c10::Stream::UNSAFE, device_at(device), id);
}
CudaStream driver_stream(const c10::Stream& stream) {
  return reinterpret_cast<CudaStream>(stream.id());
}
c10::Stream current(int device) { return stream_at(device, streams_now[std::size_t(device)]); }

void launch(const c10::Stream& stream, std::function<void()> kernel) {
  const On on(stream.device_index());
  const auto call = [](void* data) {
    const std::unique_ptr<std::function<void()>> held(static_cast<std::function<void()>*>(data));
    (*held)();
  };
  driver.launch(driver_stream(stream), call, new std::function<void()>(std::move(kernel)));
}

// ---- devices, streams, events -------------------------------------------------------------------

void used_on(void* address, const c10::Stream& stream);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    return device_at(std::exchange(device_now, int(device.index())));
  }
  c10::Device getDevice() const override { return device_at(device_now); }
  void setDevice(c10::Device device) const override { device_now = device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    device_now = device.index();
  }
  c10::Stream getStream(c10::Device device) const override {
    return current(device.has_index() ? device.index() : device_now);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return stream_at(device.index(), 0);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    const CudaStream stream = driver.pool[device.index()][pool_turn++ % kPool];
    return stream_at(device.index(), reinterpret_cast<c10::StreamId>(stream));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    c10::StreamId& now = streams_now[std::size_t(stream.device_index())];
    return stream_at(stream.device_index(), std::exchange(now, stream.id()));
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return driver_stream(stream);
  }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    const On on(stream.device_index());
    if (*event == nullptr) driver.api.event_create(reinterpret_cast<CudaEvent*>(event), 0);
    driver.api.event_record(static_cast<CudaEvent>(*event), driver_stream(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    const On on(stream.device_index());
    if (event) driver.wait_event(driver_stream(stream), static_cast<CudaEvent>(event), 0);
  }
  bool queryEvent(void* event) const override {
    return driver.api.event_query(static_cast<CudaEvent>(event)) == kCudaSuccess;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void synchronizeStream(const c10::Stream& stream) const override {
    const On on(stream.device_index());
    CudaEvent event = nullptr;
    driver.api.event_create(&event, 0);
    driver.api.event_record(event, driver_stream(stream));
    while (driver.api.event_query(event) == kCudaNotReady) sched_yield();
  }
  void recordDataPtrOnStream(const c10::DataPtr& memory, const c10::Stream& stream) const override {
    used_on(memory.get_context(), stream);
  }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// ---- memory -------------------------------------------------------------------------------------

struct Block {
  CudaAddress address;
  std::size_t bytes;
  c10::Stream taken_for;
  std::vector<c10::Stream> users;  // other streams
};

struct Memory {
  std::mutex mutex;
  std::map<void*, Block> used;
  // By stream, as torch's allocator keeps it: what was freed is free for later work of the stream.
  std::map<std::pair<c10::StreamId, std::size_t>, std::vector<CudaAddress>> kept;
};
Memory& memory() {
  static auto* one = new Memory;
  return *one;
}

void used_on(void* address, const c10::Stream& stream) {
  const std::lock_guard lock(memory().mutex);
  const auto found = memory().used.find(address);
  if (found != memory().used.end()) found->second.users.push_back(stream);
}

void spoil(const Block& block) {
  launch(block.taken_for, [block] {
    void* bytes = reinterpret_cast<void*>(driver.shadow(block.address));
    if (bytes != nullptr) std::memset(bytes, 0xdd, block.bytes);  // null: a test took it away
  });
}

void release(void* address) {
  Memory& all = memory();
  const std::lock_guard lock(all.mutex);
  const Block block = all.used.extract(address).mapped();
  // torch looks at events of those streams later; here the block is simply not given out again.
  if (!block.users.empty()) return;
  spoil(block);
  all.kept[{block.taken_for.id(),
            block.bytes * kDevices + std::size_t(block.taken_for.device_index())}]
      .push_back(block.address);
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    Memory& all = memory();
    const std::lock_guard lock(all.mutex);
    const c10::Stream stream = current(device_now);
    const std::size_t size = std::max<std::size_t>(512, (bytes + 511) & ~std::size_t(511));
    auto& kept = all.kept[{stream.id(), size * kDevices + std::size_t(device_now)}];
    CudaAddress address = 0;
    if (kept.empty()) {
      address = driver.allocate(device_now, size);
    } else {
      address = kept.back();
      kept.pop_back();
    }
    auto* pointer = reinterpret_cast<void*>(address);
    all.used.emplace(pointer, Block{address, size, stream, {}});
    return {pointer, pointer, &release, device_at(device_now)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void*, const void*, std::size_t) const override { std::abort(); }
};
Allocator allocator;

// ---- kernels ------------------------------------------------------------------------------------

// The tensor's real bytes, as a CPU tensor: for kernels, when their turn comes.
struct Place {
  explicit Place(const at::Tensor& tensor)
      : address(reinterpret_cast<CudaAddress>(tensor.data_ptr())),
        is_gpu(tensor.is_cuda()),
        sizes(tensor.sizes().vec()),
        strides(tensor.strides().vec()),
        dtype(tensor.scalar_type()) {}
  at::Tensor tensor() const {
    const auto real = is_gpu && address != 0 ? driver.shadow(address) : address;
    return at::from_blob(reinterpret_cast<void*>(real), sizes, strides, dtype);
  }
  CudaAddress address;
  bool is_gpu;
  std::vector<std::int64_t> sizes, strides;
  at::ScalarType dtype;
};

c10::Stream stream_of(const at::Tensor& tensor) { return current(tensor.get_device()); }

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool) {
  const at::Tensor like = from.expand_as(to);
  const bool on_gpu = to.is_cuda() && from.is_cuda();
  const c10::Stream stream = stream_of(to.is_cuda() ? to : from);
  if (to.numel() == 0) return to;
  launch(stream, [to = Place(to), from = Place(like)] { to.tensor().copy_(from.tensor()); });
  if (!on_gpu) Guard().synchronizeStream(stream);
  return to;
}

// What a kernel reads: a tensor on the GPU, or a number, which torch wraps into a CPU tensor.
struct Operand {
  Operand(const at::Tensor& given, const at::Tensor& out) : place(given) {
    if (given.is_cpu()) number = given.clone();
    TORCH_CHECK(given.numel() == 1 || given.sizes() == out.sizes(), "the fake does not broadcast");
  }
  at::Tensor tensor() const { return number.defined() ? number : place.tensor(); }
  Place place;
  at::Tensor number;
};

template <at::Tensor& (*cpu)(at::Tensor&, const at::Tensor&, const at::Tensor&)>
at::Tensor& binary_out(const at::Tensor& left, const at::Tensor& right, at::Tensor& out) {
  launch(stream_of(out),
         [out = Place(out), left = Operand(left, out), right = Operand(right, out)] {
           at::Tensor to = out.tensor();
           cpu(to, left.tensor(), right.tensor());
         });
  return out;
}

at::Tensor& add(at::Tensor& to, const at::Tensor& left, const at::Tensor& right) {
  return at::add_out(to, left, right);
}
at::Tensor& add_out(const at::Tensor& left, const at::Tensor& right, const at::Scalar&,
                    at::Tensor& out) {
  return binary_out<&add>(left, right, out);
}

// Only by numbers.
at::Tensor& divide(at::Tensor& self, const at::Tensor& by, std::optional<std::string> rounding) {
  TORCH_CHECK(by.is_cpu(), "the fake divides by numbers");
  launch(stream_of(self), [self = Place(self), by = by.clone(), rounding] {
    at::Tensor values = self.tensor();
    rounding ? values.div_(by, *rounding) : values.div_(by);
  });
  return self;
}
at::Tensor& div(at::Tensor& self, const at::Tensor& by) { return divide(self, by, {}); }
at::Tensor& div_mode(at::Tensor& self, const at::Tensor& by,
                     std::optional<std::string_view> rounding) {
  return divide(self, by, std::string(*rounding));
}
at::Tensor& mul(at::Tensor& self, const at::Tensor& by) {
  return binary_out<&at::mul_out>(self, by, self);
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard on(device);
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   dtype.value_or(at::kFloat), format);
}
at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard on(device);
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           dtype.value_or(at::kFloat));
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  m.impl("copy_", &copy);
  m.impl("add.out", &add_out);
  m.impl("mul.out", &binary_out<&at::mul_out>);
  m.impl("minimum.out", &binary_out<&at::minimum_out>);
  m.impl("maximum.out", &binary_out<&at::maximum_out>);
  m.impl("bitwise_and.Tensor_out", &binary_out<&at::bitwise_and_out>);
  m.impl("bitwise_or.Tensor_out", &binary_out<&at::bitwise_or_out>);
  m.impl("bitwise_xor.Tensor_out", &binary_out<&at::bitwise_xor_out>);
  m.impl("mul_.Tensor", &mul);
  m.impl("div_.Tensor", &div);
  m.impl("div_.Tensor_mode", &div_mode);
}

// ---- what the test does -------------------------------------------------------------------------

void open(const std::string& library) {
  void* opened = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
  TORCH_CHECK(opened != nullptr, "the fake driver is not loaded");
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(opened, name));
    TORCH_CHECK(function != nullptr, "the fake driver has no ", name);
  };
  each_cuda_function(driver.api, find);
  find(driver.wait_event, "cuStreamWaitEvent");
  find(driver.launch, "cuLaunchHostFunc");
  find(driver.allocate, "fake_allocate");
  find(driver.shadow, "fake_shadow");
  for (int device = 0; device < kDevices; ++device) {
    driver.api.primary_retain(&driver.contexts[device], device);
    const On on(device);
    for (CudaStream& stream : driver.pool[device]) driver.api.stream_create(&stream, 0, 0);
  }
}

// Streams that a test holds: their next kernel waits until the test lets it go.
std::atomic<bool> let_go{true};

void hold(int device) {
  let_go = false;
  launch(current(device), [] { let_go.wait(false); });
}
void go_on() {
  let_go = true;
  let_go.notify_all();
}

void fill(const at::Tensor& tensor, int value) {
  launch(stream_of(tensor), [to = Place(tensor), value] {
    at::Tensor bytes = to.tensor();
    std::memset(bytes.data_ptr(), value, bytes.nbytes());
  });
}

}  // namespace

PYBIND11_MODULE(torch_on_fake_cuda, m) {
  m.def("open", &open);
  m.def("hold", &hold);
  m.def("go_on", &go_on);
  m.def("fill", &fill);
  m.def("stream", [](int device) { return Guard().getNewStream(device_at(device), 0).id(); });
  m.def("set_stream", [](int device, c10::StreamId id) {
    return Guard().exchangeStream(stream_at(device, id)).id();
  });
  m.def("current_stream", [](int device) { return current(device).id(); });
  m.def(
      "synchronize", [](int device) { Guard().synchronizeStream(current(device)); },
      pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("to_gpu", [](const at::Tensor& values, int device) {
    at::Tensor made = at::empty(values.sizes(), values.options().device(device_at(device)));
    return made.copy_(values);
  });
}
