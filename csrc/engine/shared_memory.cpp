// Stage: engine. See shared_memory.h.
#include "engine/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace tent {
namespace {

constexpr std::size_t kPage = 4096, kHugePage = 2u << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

[[noreturn]] void fail(const char* what, std::size_t bytes) {
  throw std::system_error(
      errno, std::generic_category(),
      std::string(what) + " for " + std::to_string(bytes) + " bytes of shareable memory");
}

std::uint64_t next_region() {
  static std::atomic<std::uint64_t> next{1};
  return next.fetch_add(1);
}

}  // namespace

SharedMemory::SharedMemory(std::shared_ptr<Engine> engine, std::size_t bytes)
    : engine_(std::move(engine)), bytes_(bytes) {
  engine_->check();
  if (bytes > SIZE_MAX / 2) throw std::invalid_argument("more memory than there are addresses");
  const std::size_t unit = bytes >= kHugePage ? kHugePage : kPage;
  mapped_bytes_ = round_up(bytes == 0 ? 1 : bytes, unit);
  const int fd = memfd_create("tent", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) fail("no descriptor", bytes_);
  Status status;
  try {
    map(fd);
    region_ = next_region();
    const auto address = reinterpret_cast<std::uint64_t>(address_);
    status = engine_->hold()->share({region_, address, mapped_bytes_, fd});
  } catch (...) {
    ::close(fd);
    release();
    throw;
  }
  ::close(fd);  // the transport keeps its own
  if (status.ok()) return;
  release();
  throw std::runtime_error("memory cannot be shared with other processes: " + status.text);
}

SharedMemory::~SharedMemory() {
  if (!engine_->forked()) {
    try {
      engine_->hold()->share({region_, 0, 0, -1});
    } catch (const std::runtime_error&) {  // closed: the transport has forgotten it
    }
  }
  release();
}

void SharedMemory::map(int fd) {
  if (ftruncate(fd, off_t(mapped_bytes_)) != 0) fail("no room", bytes_);
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) fail("no seal", bytes_);
  // Reserve more, so that the mapping can begin where a huge page may.
  const std::size_t slack = mapped_bytes_ >= kHugePage ? kHugePage : 0;
  void* reserved = mmap(nullptr, mapped_bytes_ + slack, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) fail("no addresses", bytes_);
  const auto start = reinterpret_cast<std::size_t>(reserved);
  const std::size_t aligned = slack != 0 ? round_up(start, slack) : start;
  const std::size_t before = aligned - start, behind = slack - before;
  if (before != 0) munmap(reserved, before);
  if (behind != 0) munmap(reinterpret_cast<void*>(aligned + mapped_bytes_), behind);
  address_ = reinterpret_cast<void*>(aligned);
  if (mmap(address_, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
      MAP_FAILED) {
    fail("no mapping", bytes_);
  }
  madvise(address_, mapped_bytes_, MADV_HUGEPAGE);  // advice: without it, it is only slower
}

void SharedMemory::release() {
  if (address_) munmap(address_, mapped_bytes_);
  address_ = nullptr;
}

}  // namespace tent
