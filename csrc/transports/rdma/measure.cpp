// Stage: transport. See measure.h.
#include "transports/rdma/measure.h"

#include <sys/epoll.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "transports/rdma/device.h"
#include "transports/rdma/memory.h"

namespace tent {

Status measure_registration(const std::string& library, const std::string& name,
                            std::uint64_t bytes, double& seconds) {
  Status why;
  const std::unique_ptr<Verbs> verbs = Verbs::open(library, why);
  if (!verbs) return why;
  const Descriptor ready(::epoll_create1(EPOLL_CLOEXEC));
  const std::unique_ptr<RdmaDevice> device = RdmaDevice::open(*verbs, name, ready.get(), why);
  if (!device) return why;
  std::vector<std::uint8_t> memory(bytes, 1);  // touched: that is not what is measured
  std::vector<ibv::Mr*> made;
  const auto began = std::chrono::steady_clock::now();
  for (std::uint64_t at = 0; at < bytes && why.ok(); at += RdmaMemory::kPieceBytes) {
    const std::uint64_t piece = std::min(bytes - at, RdmaMemory::kPieceBytes);
    errno = 0;
    ibv::Mr* mr =
        verbs->reg_mr(device->pd(), memory.data() + at, piece, rights_of(RdmaUse::Source));
    if (mr == nullptr) {
      why = failed(registration_refused(errno, piece));
    } else {
      made.push_back(mr);
    }
  }
  seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  for (ibv::Mr* mr : made) verbs->dereg_mr(mr);
  return why;
}

}  // namespace tent
