// Stage: engine. What the Node asks of the world (Outbox) and what the transports ask of the Node
// (Receiver). Under the engine lock; exchange.h has the rule of re-entry that all of this keeps.
#include <algorithm>

#include "engine/clock.h"
#include "engine/exchange.h"

namespace tent {
namespace {

constexpr std::uint64_t kPiecesAsked = 4096;

// The memory a layout touches, one piece per part where that is known to be enough. False when only
// its single pieces could tell and there are too many of them.
bool memory_of(const Layout& layout, bool whole, Pieces& out) {
  std::uint64_t pieces = 0;
  for (const Part& part : layout.parts()) pieces += part.pieces();
  if (!whole && pieces > kPiecesAsked) return false;
  if (!whole) {
    layout.pieces(0, layout.bytes(), out);
    return true;
  }
  for (const Part& part : layout.parts()) {
    if (part.bytes() == 0) continue;
    std::int64_t low = 0, high = 0;
    if (!part.extent(low, high)) return false;
    out.push_back({part.base + std::uint64_t(low), std::uint64_t(high - low)});
  }
  return true;
}

}  // namespace

Reach Exchange::reach_of(const Transport& transport, LinkId link, const Layout& source) {
  Pieces memory;
  Reach best = Reach::No;
  if (memory_of(source, true, memory)) best = transport.reach(link, memory);
  if (best == Reach::Direct || source.parts().empty()) return best;
  // The gaps between the pieces may lie outside what the link reaches, though no piece does.
  memory.clear();
  if (memory_of(source, false, memory)) return transport.reach(link, memory);
  return best;
}

// ---- Outbox: inside a Node call

void Exchange::post(LinkId link, Frame frame) { outgoing_.emplace_back(link, std::move(frame)); }

void Exchange::close(LinkId link, const Status& why) {
  Port* gone = port(link);
  if (!gone) return;
  gone->transport->close(link);
  ++gone->rail->fences;
  forget(link, why.text);
}

void Exchange::rest(LinkId link) {
  if (!port(link)) return;
  rdma.rest(link);
  forget(link, "it carried nothing", true);
}

void Exchange::done(Report report) {
  const bool copies = devices_ && devices_->copying(report.id);
  (copies ? copying_ : ended_).push_back(std::move(report));
}

void Exchange::dial(PeerId peer, RailKinds rails) {
  events_.add({ControlEvent::Kind::Dial, peer, rails, "", ""});
}

void Exchange::peer_lost(PeerId peer, const Status& why) {
  std::erase_if(copying_peers_, [peer](const auto& entry) { return entry.first == peer; });
  events_.add({ControlEvent::Kind::Lost, peer, 0, "", why.text});
}

void Exchange::noted(SegmentId segment) { bells.ring(segment, operations.aftermath()); }

void Exchange::traced(const SliceEvent& event) {
  if (devices_) devices_->out.left(event.link, event.flow, event.offset, event.acked);
  if (event.acked && !trace.on()) return;
  const RailRef rail = rail_of(event.link);
  if (!rail) return;
  if (!event.acked) ++rail->retries;
  if (trace.on()) trace.add({event, rail});
}

// Memory that this transfer keeps in place is what RDMA devices may register.
void Exchange::hold(const Request& request) {
  if (!rdma.memory.wanted) return;
  Pieces memory;
  if (memory_of(request.local, true, memory)) {
    rdma.memory.hold({MemoryOwner::Kind::Transfer, request.id}, memory, request.local.device());
  }
}

Status Exchange::share(const Region& region) {
  rdma.register_region(region);
  return shm_.register_region(region);
}

// Whether another rail that is allowed saves this one an extra copy.
bool Exchange::spared(LinkId link, const Port& to, RailKinds allowed) const {
  return std::any_of(ports_.begin(), ports_.end(), [&](const auto& entry) {
    const Port& rival = entry.second;
    return entry.first != link && rival.peer == to.peer && rival.kind != to.kind &&
           (allowed & rail_bit(rival.kind)) != 0;
  });
}

bool Exchange::placing(LinkId link, TransferId flow) { return rdma.placing(link, flow); }

bool Exchange::behind(LinkId link) {
  const Port* to = port(link);
  return to != nullptr && to->transport->behind(link);
}

bool Exchange::quiet(PeerId peer) {
  bool copies = false;
  std::erase_if(copying_peers_, [&](const auto& entry) {
    if (entry.first != peer) return false;
    const bool goes_on = entry.second();
    copies |= goes_on;
    return !goes_on;
  });
  return !copies;
}

bool Exchange::reaches(LinkId link, const Layout& given, Device landing, RailKinds allowed) {
  const Port* to = port(link);
  if (!to) return false;
  if (to->kind == RailKind::CudaIpc) return carries(link, given, landing);
  const bool direct = (allowed & rail_bit(RailKind::CudaIpc)) != 0;
  if (direct && by_cuda_ipc(link, *to, given, landing)) return false;
  // Bytes of a GPU go from host memory of ours.
  const bool on_gpu = given.device() != kHost && devices_;
  const bool by_rdma = on_gpu && to->kind == RailKind::Rdma && !checksum_;
  if (by_rdma && rdma.moves(link, given.device())) return true;
  const Layout& source = on_gpu ? devices_->arena.layout() : given;
  const Reach reach = reach_of(*to->transport, link, source);
  if (reach == Reach::No || to->kind == RailKind::Tcp) return reach != Reach::No;
  if (to->kind == RailKind::Rdma) return reach == Reach::Direct || !spared(link, *to, allowed);
  // Of the same-host links only the best carries it: the same processor copies for all of them, and
  // a mapping needs no system call, while a bounce needs one more copy.
  for (const auto& [other, rival] : ports_) {
    const bool local = rival.kind == RailKind::Shm || rival.kind == RailKind::Cma;
    if (rival.peer != to->peer || rival.kind == to->kind || !local) continue;
    const bool rival_direct = reach_of(*rival.transport, other, source) == Reach::Direct;
    if (rival_direct && (reach == Reach::Staged || rival.kind == RailKind::Shm)) return false;
  }
  return true;
}

// ---- Receiver: inside a transport's poll() or send()

bool Exchange::frame(LinkId link, const FrameHeader& header, std::span<const std::uint8_t> body) {
  return node_.frame(link, header, body, now_ns()) || malformed(link);
}

bool Exchange::slice(LinkId link, const FrameHeader& header) {
  // Nobody here can sum what lies on a GPU, and our own kind never asks for it.
  const Port* on = port(link);
  if (on && on->kind == RailKind::CudaIpc && (header.flags & kHasCrc) != 0) return malformed(link);
  if (!node_.slice(link, header, now_ns())) return malformed(link);
  if (devices_) {
    const Port* from = port(link);
    if (from && from->kind != RailKind::CudaIpc) {
      using Way = IncomingSlices::Way;
      // What is summed, or carried in messages, a processor must see.
      const bool seen = (header.flags & kHasCrc) != 0 || header.body_bytes <= RdmaLink::kCarriedMax;
      const Way by_rdma = seen ? Way::Always : Way::MayDirect;
      devices_->in.begin(link, from->peer, header,
                         from->kind == RailKind::Rdma ? by_rdma : Way::MayWait);
    }
  }
  return true;
}

bool Exchange::landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
                       Pieces& out) {
  if (!node_.landing(link, flow, offset, length, out)) return false;
  if (!devices_) return true;
  if (devices_->in.torn(link, flow, offset, length)) {
    out.clear();
    down(link, {Code::Failed, "bytes for a GPU came in a message in the middle of a slice", ""});
    return false;
  }
  return devices_->in.landing(link, flow, offset, length, out);
}

bool Exchange::landing_of_device(LinkId link, TransferId flow, std::uint64_t offset,
                                 std::uint64_t length, Pieces& out) {
  if (!node_.landing(link, flow, offset, length, out)) return false;
  if (!devices_) return true;
  const auto reaches = [&](Device gpu) { return rdma.moves(link, gpu) && rdma.places(link, out); };
  if (devices_->in.directly(link, flow, offset, length, reaches)) return true;
  return devices_->in.landing(link, flow, offset, length, out);
}

bool Exchange::landed(LinkId link, const FrameHeader& header) {
  if (Port* from = port(link)) {
    from->rail->bytes_received += header.body_bytes;
    ++from->rail->slices_received;
  }
  if (devices_) {
    if (const Device device = devices_->in.placed_directly(link, header); device != kHost) {
      const Status seen = devices_->copies.settle_writes(device);
      if (!seen.ok()) return down(link, seen), false;
    }
    const RailRef rail = rail_of(link);
    if (const auto intact = devices_->in.landed(link, header, rail ? rail->name : "", now_ns())) {
      return *intact || malformed(link);
    }
  }
  return node_.landed(link, header, now_ns()) || malformed(link);
}

// The addresses that a link between GPUs names, or an RDMA device reads, are those of the GPU; all
// others get those of copies.
bool Exchange::source(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
                      Pieces& out) {
  if (devices_ && node_.source_origin(flow).device != kHost) {
    const Port* to = port(link);
    const bool named =
        to && (to->kind == RailKind::CudaIpc || devices_->out.sends_directly(link, flow, offset));
    if (!named) return devices_->out.source(flow, offset, length, out);
  }
  return node_.source(flow, offset, length, out);
}

void Exchange::down(LinkId link, const Status& why) { downs_.push_back({link, why}); }

bool Exchange::malformed(LinkId link) {
  downs_.push_back({link, {Code::Failed, "the peer sent a malformed frame", ""}});
  return false;
}

}  // namespace tent
