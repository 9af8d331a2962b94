// Stage: tests. Memory as the fake libibverbs registers it: the process's own, and that of the fake
// GPUs, by the descriptor of a range or, where a test says that nvidia-peermem is there, by
// address. Any thread; the world's mutex. What always holds: as in the kernel, memory that no
// processor may touch is not registered by address alone.
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "fake.h"

using namespace fake;

namespace {

// Null with errno where the device refuses so many bytes.
Region* enroll(std::unique_lock<std::mutex>& guard, ibv::Pd* pd, std::uint64_t address,
               std::size_t bytes, int rights) {
  World& w = world();
  Machine& machine = w.machines[static_cast<Opened*>(pd->context)->index];
  if (machine.passing > 0) {
    --machine.passing;
  } else {
    ++machine.waiting;
    const auto wait = std::chrono::duration_cast<Clock::duration>(Seconds(machine.gate_s));
    const Time until = Clock::now() + wait;
    while (machine.gate_s > 0 && Clock::now() < until) w.gate.wait_until(guard, until);
    --machine.waiting;
  }
  const bool refused = machine.refuse_errno != 0 && bytes > machine.refuse_above;
  if (refused || machine.registered_bytes + bytes > machine.registered_bytes_max) {
    errno = refused ? machine.refuse_errno : ENOMEM;
    return nullptr;
  }
  machine.registered_bytes += bytes;
  auto* region = new Region{};
  region->context = pd->context;
  region->pd = pd;
  region->addr = reinterpret_cast<void*>(address);
  region->length = bytes;
  region->lkey = region->rkey = w.next_number++;
  region->rights = rights;
  w.regions.insert(region);
  ++w.registrations;
  return region;
}

// As the kernel finds out: memory that no processor may touch has no pages of its own.
bool has_pages(const void* address) {
  std::uint8_t byte = 0;
  iovec here{&byte, 1}, there{const_cast<void*>(address), 1};
  return ::process_vm_readv(::getpid(), &here, 1, &there, 1, 0) == 1;
}

}  // namespace

EXPORT ibv::Mr* ibv_reg_mr(ibv::Pd* pd, void* memory, std::size_t bytes, int rights) {
  std::unique_lock guard(world().mutex);
  const auto address = reinterpret_cast<std::uint64_t>(memory);
  std::uint8_t* shadow = nullptr;
  if (!has_pages(memory)) {
    const auto translate = world().peer_memory;
    if (translate != nullptr) shadow = reinterpret_cast<std::uint8_t*>(translate(address));
    if (shadow == nullptr) {
      errno = EFAULT;
      return nullptr;
    }
  }
  Region* region = enroll(guard, pd, address, bytes, rights);
  if (region != nullptr) region->shadow = shadow;
  return region;
}
EXPORT ibv::Mr* ibv_reg_dmabuf_mr(ibv::Pd* pd, std::uint64_t offset, std::size_t bytes,
                                  std::uint64_t address, int fd, int rights) {
  const off_t begin = ::lseek(fd, 0, SEEK_CUR);  // see fake_cuda_ipc.cpp
  const std::size_t whole = std::size_t(offset) + bytes;
  void* mapped = ::mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_SHARED, fd, begin);
  if (begin < 0 || mapped == MAP_FAILED) {
    errno = EINVAL;
    return nullptr;
  }
  std::unique_lock guard(world().mutex);
  Region* region = enroll(guard, pd, address, bytes, rights);
  if (region == nullptr) {
    const int error = errno;
    ::munmap(mapped, whole);
    errno = error;
    return nullptr;
  }
  region->shadow = static_cast<std::uint8_t*>(mapped) + offset;
  region->mapped = whole;
  return region;
}
EXPORT int ibv_dereg_mr(ibv::Mr* given) {
  Guard guard(world().mutex);
  Machine& machine = world().machines[static_cast<Opened*>(given->context)->index];
  machine.registered_bytes -= given->length;
  auto* region = static_cast<Region*>(given);
  world().regions.erase(region);
  if (region->mapped != 0) {
    ::munmap(region->shadow + region->length - region->mapped, region->mapped);
  }
  delete region;
  return 0;
}
EXPORT void fake_peer_memory(std::uint64_t function) {
  Guard guard(world().mutex);
  world().peer_memory = reinterpret_cast<std::uint64_t (*)(std::uint64_t)>(function);
}
EXPORT void fake_misses_gpus(int device, int on) {
  Guard guard(world().mutex);
  world().machines[device].misses_gpus = on != 0;
}
