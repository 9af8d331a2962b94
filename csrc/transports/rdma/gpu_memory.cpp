// Stage: transport. See gpu_memory.h.
#include "transports/rdma/gpu_memory.h"

#include <unistd.h>

#include <cerrno>

#include "drivers/cuda.h"

namespace tent {
namespace {

constexpr std::uint64_t kPage = 4096;  // a range has whole pages of the host

ibv::Mr* by_descriptor(const Verbs& verbs, ibv::Pd* pd, std::uint64_t begin, std::uint64_t end,
                       int rights, Device device) {
  const Cuda* cuda = Cuda::loaded();
  if (cuda == nullptr || cuda->api().memory_fd == nullptr || verbs.reg_dmabuf_mr == nullptr) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  Status status;
  const auto gpu = Gpu::open(*cuda, device, status);
  if (!gpu) {
    errno = ENODEV;
    return nullptr;
  }
  const OnGpu on(*gpu);
  const std::uint64_t first = begin / kPage * kPage, last = (end + kPage - 1) / kPage * kPage;
  int fd = -1;
  if (cuda->api().memory_fd(&fd, first, last - first, kCudaRangeDmaBuf, 0) != kCudaSuccess) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  ibv::Mr* mr = verbs.reg_dmabuf_mr(pd, begin - first, end - begin, begin, fd, rights);
  const int error = errno;
  ::close(fd);  // the registration keeps the memory
  errno = error;
  return mr;
}

}  // namespace

ibv::Mr* register_memory(const Verbs& verbs, ibv::Pd* pd, std::uint64_t begin, std::uint64_t end,
                         int rights, Device device) {
  errno = 0;
  if (device != kHost) {
    ibv::Mr* mr = by_descriptor(verbs, pd, begin, end, rights, device);
    if (mr != nullptr) return mr;
  }
  return verbs.reg_mr(pd, reinterpret_cast<void*>(begin), end - begin, rights);
}

}  // namespace tent
