// Stage: transport. See cuda_memory.h.
#include "transports/cuda_memory.h"

#include <algorithm>

namespace tent {
namespace {

constexpr const char* kNotCapable =
    "its allocation cannot be opened by other processes: it comes from expandable segments or a "
    "stream-ordered pool (unset expandable_segments in PYTORCH_CUDA_ALLOC_CONF)";

bool attribute(int which, std::uint64_t address, void* value) {
  return Cuda::loaded()->api().pointer_attribute(value, which, address) == kCudaSuccess;
}

}  // namespace

bool SharedSpaces::is_still(const Entry& entry) {
  std::uint64_t buffer = 0;
  return attribute(kCudaPointerBufferId, entry.space.base, &buffer) && buffer == entry.buffer;
}

const SharedSpace* SharedSpaces::of(std::uint64_t address, std::string& why) {
  auto found = spaces_.upper_bound(address);
  if (found != spaces_.begin()) {
    const Entry& entry = std::prev(found)->second;
    const bool inside = address - entry.space.base < entry.space.bytes;
    if (inside && is_still(entry)) return &entry.space;
  }
  int device = kHost, capable = 0;
  unsigned kind = 0;
  if (Cuda::loaded() == nullptr || !attribute(kCudaPointerMemoryType, address, &kind) ||
      kind != kCudaMemoryTypeDevice || !attribute(kCudaPointerDeviceOrdinal, address, &device)) {
    why = "it is no memory of a GPU";
    return nullptr;
  }
  const Gpu* gpu = gpu_of_(Device(device));
  if (gpu == nullptr) {
    why = "cuda:" + std::to_string(device) + " is not in use here";
    return nullptr;
  }
  if (!attribute(kCudaPointerIpcCapable, address, &capable) || (capable & 1) == 0) {
    why = kNotCapable;
    return nullptr;
  }
  const OnGpu on(*gpu);
  Entry entry;
  CudaAddress base = 0;
  std::size_t bytes = 0;
  Status status = gpu->cuda().check(gpu->api().address_range(&base, &bytes, address),
                                    "looking up an allocation of cuda:" + std::to_string(device));
  if (status.ok()) {
    status = gpu->cuda().check(gpu->api().ipc_export(&entry.space.name, base),
                               "sharing an allocation of cuda:" + std::to_string(device));
  }
  if (!status.ok() || !attribute(kCudaPointerBufferId, base, &entry.buffer)) {
    why = status.ok() ? "the driver gives its allocation no number" : status.text;
    return nullptr;
  }
  entry.space.replaces = drop_under(base, bytes);
  entry.space.number = next_++;
  entry.space.gpu = gpu->key();
  entry.space.base = base;
  entry.space.bytes = bytes;
  return &spaces_.insert_or_assign(base, entry).first->second.space;
}

// Allocations that were at these addresses before: the number of the last of them.
std::uint64_t SharedSpaces::drop_under(std::uint64_t base, std::uint64_t bytes) {
  std::uint64_t last = 0;
  std::erase_if(spaces_, [&](const auto& known) {
    const SharedSpace& space = known.second.space;
    const bool under = space.base < base + bytes && base < space.base + space.bytes;
    if (under) last = std::max(last, space.number);
    return under;
  });
  return last;
}

std::vector<std::uint64_t> SharedSpaces::freed() {
  std::vector<std::uint64_t> numbers;
  std::erase_if(spaces_, [&](const auto& known) {
    if (is_still(known.second)) return false;
    numbers.push_back(known.second.space.number);
    return true;
  });
  return numbers;
}

void OpenedSpaces::learn(const SharedSpace& space, bool own) {
  forget(space.replaces);
  spaces_.try_emplace(space.number, Entry{space, own, {}});
}

const SharedSpace* OpenedSpaces::find(std::uint64_t number) const {
  const auto found = spaces_.find(number);
  return found == spaces_.end() ? nullptr : &found->second.space;
}

std::uint64_t OpenedSpaces::open(std::uint64_t number, Device device, std::string& why) {
  Entry& entry = spaces_.at(number);
  if (entry.own) return entry.space.base;
  const auto known = entry.opened.find(device);
  if (known != entry.opened.end()) return known->second;
  const Gpu* gpu = gpu_of_(device);
  if (gpu == nullptr) {
    why = "cuda:" + std::to_string(device) + " is not in use here";
    return 0;
  }
  const OnGpu on(*gpu);
  CudaAddress address = 0;
  const Status status =
      gpu->cuda().check(gpu->api().ipc_open(&address, entry.space.name, kCudaIpcLazyPeerAccess),
                        "opening a peer's allocation on cuda:" + std::to_string(device));
  if (!status.ok()) {
    why = status.text;
    return 0;
  }
  // A copy past the end would cost our process the GPU: the peer's word for the size is not enough.
  CudaAddress base = 0;
  std::size_t bytes = 0;
  if (gpu->api().address_range(&base, &bytes, address) == kCudaSuccess &&
      base + bytes - address < entry.space.bytes) {
    gpu->api().ipc_close(address);
    why = "the peer's allocation is smaller than it says";
    return 0;
  }
  entry.opened.emplace(device, address);
  return address;
}

void OpenedSpaces::close(Entry& entry) {
  for (const auto& [device, address] : entry.opened) {
    if (const Gpu* gpu = gpu_of_(device)) {
      const OnGpu on(*gpu);
      gpu->api().ipc_close(address);
    }
  }
}

void OpenedSpaces::forget(std::uint64_t number) {
  const auto found = spaces_.find(number);
  if (found == spaces_.end()) return;
  close(found->second);
  spaces_.erase(found);
}

void OpenedSpaces::close_all() {
  for (auto& [number, entry] : spaces_) close(entry);
  spaces_.clear();
}

}  // namespace tent
