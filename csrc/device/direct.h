// Stage: device. Copies from GPU to GPU for links that carry such memory (transports/cuda_ipc.h):
// who they are for, so that the end of a transfer, and memory that is closed, can wait for them.
// Made and asked by Exchange; engine lock held.
// What always holds: a copy is counted from its start until the GPU has done it.
#pragma once

#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/node.h"
#include "device/copies.h"
#include "transports/cuda_ipc.h"

namespace tent {

class DirectCopies final : public GpuCopier {
 public:
  struct Running {
    LinkId link;
    PeerId peer;
    TransferId flow;
    Origin origin;
  };

  DirectCopies(DeviceCopies& copies, const Node& node, std::function<PeerId(LinkId)> peer_of)
      : copies_(copies), node_(node), peer_of_(std::move(peer_of)) {}

  const Gpu* gpu(Device device) const override { return copies_.gpu(device); }
  std::vector<Device> gpus() const override { return copies_.devices(); }
  GpuCopyId copy(LinkId link, TransferId flow, Device device, const Pieces& from, const Pieces& to,
                 bool mapped) override {
    const PeerId peer = peer_of_(link);
    const CopyId id = copies_.across(device, from, to, mapped);
    running_.emplace(id, Running{link, peer, flow, node_.landing_origin(peer, flow)});
    return id;
  }
  void finish(GpuCopyId id) override { copies_.finish(id); }

  // Whose copy it was; nothing: it is none of these.
  std::optional<Running> ended(CopyId id) {
    const auto found = running_.extract(id);
    return found ? std::optional(found.mapped()) : std::nullopt;
  }
  bool copying(TransferId transfer) const {
    return any([&](const Running& copy) { return copy.origin.transfer == transfer; });
  }
  bool placing(PeerId peer, TransferId flow) const {
    return any([&](const Running& copy) { return copy.peer == peer && copy.flow == flow; });
  }
  bool copying_segment(SegmentId segment) const {
    return any([&](const Running& copy) { return copy.origin.segment == segment; });
  }

 private:
  template <class Test>
  bool any(Test test) const {  // there are at most as many as a link has under way
    for (const auto& [id, copy] : running_) {
      if (test(copy)) return true;
    }
    return false;
  }

  DeviceCopies& copies_;
  const Node& node_;
  const std::function<PeerId(LinkId)> peer_of_;
  std::unordered_map<CopyId, Running> running_;
};

}  // namespace tent
