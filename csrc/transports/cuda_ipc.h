// Stage: transport. Between the GPUs of one host, without the host's memory: slices are named in a
// ring by the allocation that they lie in, and the receiver opens it and has its GPU copy them.
// What carries the bytes is up to the driver: NVLink, PCIe, or the memory of the one GPU of both.
// Called by the thread that holds the engine lock; only closing a link waits for a GPU.
// What always holds: only copies that the receiver started write to its memory; a link that is
// closed has none under way.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "transports/cuda_memory.h"
#include "transports/cuda_slices.h"
#include "transports/local_transport.h"

namespace tent {

// Who makes the copies, and knows which devices are in use.
class GpuCopier {
 public:
  virtual ~GpuCopier() = default;
  virtual const Gpu* gpu(Device device) const = 0;  // null: it is not in use
  virtual std::vector<Device> gpus() const = 0;
  // From memory that the device can read into its own; `mapped`: kernels on it can, too.
  // CudaIpcTransport::copied() tells its end.
  virtual GpuCopyId copy(LinkId link, TransferId flow, Device device, const Pieces& from,
                         const Pieces& to, bool mapped) = 0;
  virtual void finish(GpuCopyId id) = 0;  // returns when the GPU has done it
};

class CudaIpcLink;

class CudaIpcTransport final : public LocalTransport {
 public:
  // Throws std::system_error when the process has no descriptors left.
  CudaIpcTransport(int wait_set, Doorbell& doorbell, std::uint64_t poll_bytes = kPollBytes);
  ~CudaIpcTransport() override { drop_all(); }

  // Before the first link that is to carry anything. Null: nothing is copied any more, and no link
  // may be up.
  void attach(GpuCopier* copier) { copier_ = copier; }
  // A device came into use: peers are told what it can read.
  void opened(Device device);
  void copied(LinkId link, GpuCopyId id, const Status& status);
  // Tells peers of allocations that were freed. False: there is none that could be.
  bool look_for_freed();

  Reach reach(LinkId link, const Pieces& memory) const override;  // Direct, or No: see why_not()
  Status register_region(const Region& region) override;
  // Why the peer's GPU `landing` cannot read our GPU `source`; "" where it can, or where the peer
  // has not told yet what it can: see reads().
  std::string refuses(LinkId link, Device source, Device landing) const;
  bool reads(LinkId link, Device source, Device landing) const;
  const std::string& why_not() const { return why_not_; }
  bool take_news() { return std::exchange(news_, false); }  // a peer told what it can read

 private:
  friend class CudaIpcLink;
  std::unique_ptr<LocalLink> make_link() override;
  Status accepts(const PeerSocket& peer) const override;
  void greet(LocalLink& link) override;
  void announce(CudaIpcLink& link, Device device);
  CudaIpcLink* link_of(LinkId id) const;
  const Gpu* gpu(Device device) const;

  GpuCopier* copier_ = nullptr;
  mutable SharedSpaces spaces_;
  mutable std::string why_not_;
  bool news_ = false;
  std::set<std::pair<Device, std::uint64_t>> denied_;  // what our devices failed to open
};

}  // namespace tent
