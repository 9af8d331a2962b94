// Stage: tests. The one kernel that the fake GPUs know: move_rows (triton_kernels/rows.py), which
// moves rows of a table from place to place, when its time is over. What always holds: code without
// that entry is refused; a row that names memory which the GPU does not reach ends every context
// for good, as an illegal access does.
#include <cstring>

#include "fake_cuda.h"

namespace {

constexpr CudaResult kNotFound = 500, kIllegalAddress = 700, kInvalidCode = 218;
constexpr std::uint64_t kWordsMax = 2048;

struct Place {
  std::uint8_t* memory = nullptr;  // null: nothing that the GPU reaches
  int device = -1;                 // -1: the host's
};

Place reached(std::uint64_t address, std::size_t bytes, int from) {
  CudaAddress base = 0;
  if (Allocation* found = find(address, bytes, base)) {
    // Another GPU's memory is mapped when it is opened, not when it is another one of this process.
    const bool mapped = found->device == from || (found->opened > 0 && world().peers);
    return {mapped ? found->shadow + (address - base) : nullptr, found->device};
  }
  auto* host = reinterpret_cast<std::uint8_t*>(address);
  return {is_pinned(host, bytes) ? host : nullptr, -1};
}

struct Entry {
  std::uint64_t from, to, words;
};

Way way_of(const Place& from, const Place& to) {
  if (from.device >= 0) return to.device >= 0 ? kAcross : kOutOf;
  return kInto;
}

bool move(const Entry& entry, int device) {
  const std::size_t bytes = entry.words * 8;
  const Place from = reached(entry.from, bytes, device), to = reached(entry.to, bytes, device);
  const bool right = (entry.from | entry.to | bytes) % 16 == 0 && entry.words <= kWordsMax;
  if (!right || from.memory == nullptr || to.memory == nullptr) return false;
  std::memmove(to.memory, from.memory, bytes);
  if (world().spoils) ++to.memory[bytes - 1];
  return true;
}

}  // namespace

EXPORT CudaResult cuDeviceGetAttribute(int* value, int attribute, CudaDevice) {
  BEGIN("cuDeviceGetAttribute");
  const int ordering = world().orders ? kCudaRdmaOrderedForOwner : 0;
  *value = attribute == kCudaHostPointerIsDevices ? 1
           : attribute == kCudaRdmaWritesOrdering ? ordering
                                                  : int(world().flushes);
  return 0;
}
EXPORT CudaResult cuModuleLoadData(CudaModule* module, const void* code) {
  BEGIN("cuModuleLoadData");
  if (current.empty()) return kInvalidContext;
  *module = new CUmod_st{static_cast<const char*>(code)};
  return (*module)->code.find(".target sm_") == std::string::npos ? kInvalidCode : 0;
}
EXPORT CudaResult cuModuleUnload(CudaModule module) {
  BEGIN("cuModuleUnload");
  delete module;
  return 0;
}
EXPORT CudaResult cuModuleGetFunction(CudaFunction* function, CudaModule module, const char* name) {
  BEGIN("cuModuleGetFunction");
  static CUfunc_st found;
  const std::size_t entry = module->code.find(".entry " + std::string(name) + "(");
  if (entry == std::string::npos) return kNotFound;
  found.parameters = 0;
  for (std::size_t at = entry; (at = module->code.find(".param", at + 1)) != std::string::npos;) {
    if (at > module->code.find(')', entry)) break;
    ++found.parameters;
  }
  return *function = &found, 0;
}
EXPORT CudaResult cuLaunchKernel(CudaFunction function, unsigned programs, unsigned, unsigned,
                                 unsigned threads, unsigned, unsigned, unsigned, CudaStream given,
                                 void** parameters, void**) {
  BEGIN("cuLaunchKernel");
  if (current.empty()) return kInvalidContext;
  for (std::size_t i = 0; i < function->parameters; ++i) {
    if (parameters[i] == nullptr) return kInvalidValue;
  }
  std::uint64_t table = 0;
  std::uint32_t rows = 0;
  std::memcpy(&table, parameters[0], sizeof table);
  std::memcpy(&rows, parameters[1], sizeof rows);
  if (programs == 0 || programs > rows || threads != 256) return kInvalidValue;
  CUctx_st& context = *current.back();
  push(stream_of(given), [=, &context] {
    const auto* entries = reinterpret_cast<const Entry*>(table);
    std::size_t bytes = 0;
    for (std::uint32_t i = 0; i < rows; ++i) bytes += entries[i].words * 8;
    const auto move_all = [=, &context] {
      for (std::uint32_t i = 0; i < rows; ++i) {
        if (!move(entries[i], context.device)) world().poison = kIllegalAddress;
      }
    };
    std::unique_lock lock(world().mutex);
    const Place from = reached(entries->from, 1, context.device);
    const Place to = reached(entries->to, 1, context.device);
    if (from.device < 0 && to.device < 0) return move_all();  // a trial: no direction's copy
    lock.unlock();
    carry_out(way_of(from, to), bytes, context, move_all);
  });
  return 0;
}
