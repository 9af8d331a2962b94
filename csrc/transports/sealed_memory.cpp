// Stage: transport. See sealed_memory.h.
#include "transports/sealed_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <string>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace tent {

Descriptor make_sealed(const char* name, std::size_t bytes) {
  Descriptor memory(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory) return {};
  if (::ftruncate(memory.get(), off_t(bytes)) != 0) return {};
  if (::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return {};
  return memory;
}

Status seal_region(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return failed("shared memory must be a memfd: use tent.empty()");
  // Where the kernel is too old for the second seal, the first alone keeps peers from faulting.
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE) == 0) return {};
  if ((seals & F_SEAL_SHRINK) != 0 || ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0) return {};
  return failed("shared memory cannot be sealed: make its memfd with MFD_ALLOW_SEALING");
}

Descriptor reopen_read_only(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  return Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

Status map_sealed(int fd, std::size_t bytes, int protection, Mapping& out) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return failed("the peer's shared memory is not sealed against shrinking");
  }
  struct stat about{};
  if (::fstat(fd, &about) != 0 || about.st_size < 0 || std::size_t(about.st_size) < bytes) {
    return failed("the peer's shared memory is smaller than it says");
  }
  out = Mapping(fd, bytes, protection);
  return out ? Status{} : failed(errno_text("the peer's shared memory cannot be mapped"));
}

}  // namespace tent
