// Stage: tests. The fake GPUs' memory, and how another process opens it: "device" memory is a
// memfd, mapped twice, once where nobody may touch it and once for the fake alone; its name for
// others is the owner's descriptor, which /proc gives to processes of the same user. What always
// holds: the owner cannot open its own; a copy from what was closed, or is on a device that has no
// access, fails.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "fake_cuda.h"

namespace {

struct Name {           // what CudaIpcName holds
  int pid, fd, device;  // the real device
  std::uint64_t bytes, number;
};
static_assert(sizeof(Name) <= sizeof(CudaIpcName));

constexpr CudaResult kNotSupported = 801, kInvalidName = 400;

std::size_t mapped_bytes(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

int seen_as(int real) {
  for (int i = 0; i < kDevices; ++i) {
    if (world().order[i] == real) return i;
  }
  return -1;
}

bool map(Allocation& memory, void*& address, int flags) {
  const std::size_t bytes = mapped_bytes(memory.bytes);
  address = mmap(address, bytes, PROT_NONE, MAP_SHARED | flags, memory.fd, 0);
  void* shadow = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
  memory.shadow = static_cast<std::uint8_t*>(shadow);
  return address != MAP_FAILED && shadow != MAP_FAILED;
}

int new_memory(std::size_t bytes) {
  const int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
  return fd >= 0 && ftruncate(fd, off_t(mapped_bytes(bytes))) == 0 ? fd : -1;
}

}  // namespace

CudaAddress allocate(int device, std::size_t bytes, bool shareable) {
  const std::lock_guard lock(world().mutex);
  Allocation made{bytes, nullptr, device};
  made.fd = new_memory(bytes);
  made.number = ++world().allocations;
  made.shareable = shareable;
  void* address = nullptr;
  if (made.fd < 0 || !map(made, address, 0)) return 0;
  const auto key = reinterpret_cast<CudaAddress>(address);
  world().memory[key] = made;
  return key;
}

// It is freed, and another allocation comes to its address.
void replace(CudaAddress address) {
  const std::lock_guard lock(world().mutex);
  Allocation& memory = world().memory.at(address);
  close(memory.fd);
  memory.fd = new_memory(memory.bytes);
  memory.number = ++world().allocations;
  auto* place = reinterpret_cast<void*>(address);
  map(memory, place, MAP_FIXED);
}

EXPORT CudaResult cuMemGetAddressRange_v2(CudaAddress* base, std::size_t* bytes,
                                          CudaAddress address) {
  BEGIN("cuMemGetAddressRange");
  const Allocation* memory = find(address, 1, *base);
  if (memory == nullptr) return kInvalidValue;
  *bytes = memory->bytes;
  return 0;
}

EXPORT CudaResult ipc_export(CudaIpcName* name, CudaAddress address) __asm__("cuIpcGetMemHandle");
EXPORT CudaResult ipc_export(CudaIpcName* name, CudaAddress address) {
  BEGIN("cuIpcGetMemHandle");
  CudaAddress base = 0;
  const Allocation* memory = find(address, 1, base);
  if (current.empty()) return kInvalidContext;
  if (memory == nullptr || base != address || memory->opened > 0) return kInvalidValue;
  if (!memory->shareable) return kNotSupported;
  const Name made{getpid(), memory->fd, world().order[memory->device], memory->bytes,
                  memory->number};
  std::memset(name, 0, sizeof *name);
  std::memcpy(name, &made, sizeof made);
  return 0;
}

EXPORT CudaResult ipc_open(CudaAddress* address, CudaIpcName given,
                           unsigned flags) __asm__("cuIpcOpenMemHandle_v2");
EXPORT CudaResult ipc_open(CudaAddress* address, CudaIpcName given, unsigned flags) {
  BEGIN("cuIpcOpenMemHandle");
  Name name;
  std::memcpy(&name, &given, sizeof name);
  if (current.empty() || name.pid == getpid()) return kInvalidContext;
  const int device = seen_as(name.device);
  if (device < 0) return kInvalidName;
  if (device != current.back()->device && (!world().peers || flags != kCudaIpcLazyPeerAccess)) {
    return kInvalidContext;
  }
  Allocation made{name.bytes, nullptr, device};
  made.fd = open(("/proc/" + std::to_string(name.pid) + "/fd/" + std::to_string(name.fd)).c_str(),
                 O_RDWR | O_CLOEXEC);
  void* place = nullptr;
  if (made.fd < 0 || !map(made, place, 0)) return kInvalidName;
  made.number = ++world().allocations;
  made.opened = 1;
  *address = reinterpret_cast<CudaAddress>(place);
  world().memory[*address] = made;
  return 0;
}

EXPORT CudaResult ipc_close(CudaAddress address) __asm__("cuIpcCloseMemHandle");
EXPORT CudaResult ipc_close(CudaAddress address) {
  BEGIN("cuIpcCloseMemHandle");
  const auto found = world().memory.find(address);
  if (current.empty()) return kInvalidContext;
  if (found == world().memory.end() || found->second.opened == 0) return kInvalidValue;
  close(found->second.fd);
  world().memory.erase(found);
  return 0;
}

EXPORT CudaResult cuMemAlloc_v2(CudaAddress* address, std::size_t bytes) {
  {
    BEGIN("cuMemAlloc");
    if (current.empty()) return kInvalidContext;
  }
  *address = allocate(current.back()->device, bytes, true);
  return 0;
}

EXPORT CudaResult cuMemFree_v2(CudaAddress address) {
  BEGIN("cuMemFree");
  const auto found = world().memory.find(address);
  if (found == world().memory.end()) return kInvalidValue;
  munmap(reinterpret_cast<void*>(address), mapped_bytes(found->second.bytes));
  munmap(found->second.shadow, mapped_bytes(found->second.bytes));
  close(found->second.fd);
  world().memory.erase(found);
  return 0;
}

// As a dma-buf: the range's own descriptor, whose first byte is the range's.
EXPORT CudaResult range_fd(void* fd, CudaAddress address, std::size_t bytes, int kind,
                           unsigned long long) __asm__("cuMemGetHandleForAddressRange");
EXPORT CudaResult range_fd(void* fd, CudaAddress address, std::size_t bytes, int kind,
                           unsigned long long) {
  BEGIN("cuMemGetHandleForAddressRange");
  CudaAddress base = 0;
  const Allocation* memory = find(address, 1, base);
  if (current.empty()) return kInvalidContext;
  if (!world().dmabuf) return kNotSupported;
  const bool pages = address % 4096 == 0 && bytes % 4096 == 0;
  if (memory == nullptr || kind != kCudaRangeDmaBuf || !pages ||
      address - base + bytes > mapped_bytes(memory->bytes)) {
    return kInvalidValue;
  }
  // The file's offset says where the range begins, for the fake libibverbs.
  const int made =
      open(("/proc/self/fd/" + std::to_string(memory->fd)).c_str(), O_RDWR | O_CLOEXEC);
  if (made < 0 || lseek(made, off_t(address - base), SEEK_SET) < 0) return kInvalidValue;
  return *static_cast<int*>(fd) = made, 0;
}

EXPORT CudaResult cuFlushGPUDirectRDMAWrites(int, int) {
  BEGIN("cuFlushGPUDirectRDMAWrites");
  return current.empty() ? kInvalidContext : 0;
}

EXPORT CudaResult cuDeviceCanAccessPeer(int* can, CudaDevice device, CudaDevice peer) {
  BEGIN("cuDeviceCanAccessPeer");
  *can = device != peer && world().peers;
  return 0;
}

EXPORT CudaResult cuMemcpyDtoDAsync_v2(CudaAddress to, CudaAddress from, std::size_t bytes,
                                       CudaStream stream) {
  BEGIN("cuMemcpyDtoDAsync");
  CudaAddress to_base = 0, from_base = 0;
  const Allocation* into = find(to, bytes, to_base);
  const Allocation* out_of = find(from, bytes, from_base);
  if (current.empty()) return kInvalidContext;
  if (into == nullptr || out_of == nullptr || into->device != current.back()->device) {
    return kInvalidValue;
  }
  if (into->device != out_of->device && !world().peers) return kInvalidValue;
  return copy(kAcross, into->shadow + (to - to_base), out_of->shadow + (from - from_base), bytes,
              stream);
}
