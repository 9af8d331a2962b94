// Stage: engine. Exchange, what concerns memory of GPUs: transfers that wait for the caller's
// stream, copies that end, frames and reports that waited for them. Under the engine lock.
#include <sched.h>

#include <stdexcept>

#include "engine/clock.h"
#include "engine/exchange.h"

namespace tent {
namespace {
constexpr TimeNs kLastCopies = 10 * kSecond;
constexpr TimeNs kWishAgain = 1 * kSecond;
const Status kNeverReached{Code::Cancelled, "the engine was closed while a stream was waited for",
                           ""};
}  // namespace

Status Exchange::open_device(Device device) {
  if (!devices_) {
    const auto peer_of = [this](LinkId link) { return port(link)->peer; };
    const auto grown = [this](const Piece& block) {
      rdma.memory.hold({MemoryOwner::Kind::Pinned, block.address}, {block});
      pinned_.push_back(block.address);
    };
    devices_ =
        std::make_unique<DeviceStage>(node_, settings_, wait_set_, peer_of, grown, copy_trace);
    cuda_ipc_.attach(&devices_->direct);
  }
  const Status status = devices_->open(device);
  if (status.ok()) cuda_ipc_.opened(device);
  return status;
}

bool Exchange::poll_cuda_ipc() {
  const bool moved = cuda_ipc_.poll(*this);
  if (cuda_ipc_.take_news()) node_.ask_again();
  return moved;
}

// Whether this slice goes over RDMA right out of the GPU's memory.
bool Exchange::reads_gpu(LinkId link, const Port& to, const FrameHeader& header) {
  if (to.kind != RailKind::Rdma || header.kind != FrameKind::Slice || checksum_) return false;
  const Device device = node_.source_origin(header.flow).device;
  if (device == kHost || header.body_bytes <= RdmaLink::kCarriedMax) return false;
  Pieces memory;
  return rdma.moves(link, device) &&
         node_.source(header.flow, header.offset, header.body_bytes, memory) &&
         rdma.names(link, memory);
}

// Where a trial has ended, it may be that more can go directly, or a reason is to be said.
void Exchange::look_at_pairs() {
  for (const GpuPairs::Pair& pair : rdma.memory.gpus.news()) {
    node_.ask_again();
    stir();
    if (pair.why_not.empty()) continue;
    events_.add({ControlEvent::Kind::Said, 0, 0, "",
                 "RDMA device " + pair.port +
                     " does not move the memory of cuda:" + std::to_string(pair.gpu) +
                     " by itself, which goes through the host's: " + pair.why_not});
  }
}

// A link between GPUs leaves nothing to the others; until there is one, it is asked for.
bool Exchange::by_cuda_ipc(LinkId link, const Port& to, const Layout& source, Device landing) {
  if (source.device() == kHost || landing == kHost || checksum_) return false;
  bool any = false, near = false;
  for (const auto& [other, rival] : ports_) {
    if (rival.peer != to.peer) continue;
    near |= rival.kind == RailKind::Shm || rival.kind == RailKind::Cma;
    any |= rival.kind == RailKind::CudaIpc;
    if (rival.kind == RailKind::CudaIpc && carries(other, source, landing)) return other != link;
  }
  if (near && !any) wish_for_cuda_ipc(to.peer);
  return false;
}

void Exchange::wish_for_cuda_ipc(PeerId peer) {
  const TimeNs now = now_ns();
  TimeNs& again = cuda_ipc_wishes_[peer];
  if (now < again) return;
  again = now + kWishAgain;
  dial(peer, rail_bit(RailKind::CudaIpc));
}

bool Exchange::carries(LinkId link, const Layout& source, Device landing) {
  if (checksum_ || source.device() == kHost || landing == kHost) return false;
  if (!cuda_ipc_.reads(link, source.device(), landing)) return false;
  if (reach_of(cuda_ipc_, link, source) == Reach::Direct) return true;
  if (std::exchange(cuda_ipc_said_, true)) return false;
  events_.add({ControlEvent::Kind::Said, 0, 0, "",
               "memory of a GPU goes through the host's memory to other processes: " +
                   cuda_ipc_.why_not()});
  return false;
}

std::string Exchange::never_reaches(LinkId link, const Layout& source, Device landing) {
  const Port* to = port(link);
  if (!to || to->kind != RailKind::CudaIpc) return "";
  if (checksum_) return "with checksums the bytes of GPUs go through the host's memory";
  const std::string why = cuda_ipc_.refuses(link, source.device(), landing);
  if (!why.empty() || !cuda_ipc_.reads(link, source.device(), landing)) return why;
  return reach_of(cuda_ipc_, link, source) == Reach::Direct ? "" : cuda_ipc_.why_not();
}

// The transfer touches its memory only after what its stream has queued until now.
void Exchange::order(Request& request) {
  const Device device = request.local.device();
  Status status = open_device(device);
  CopyId mark = 0;
  if (status.ok()) status = devices_->copies.mark(device, request.local.stream(), mark);
  if (!status.ok()) throw std::runtime_error(status.text);
  if (mark == 0) return;
  request.held = true;
  devices_->marks.emplace(mark, Mark{request.id, nullptr});
}

Status Exchange::why_not_after(Device device, std::uint64_t stream) {
  const Status status = open_device(device);
  return status.ok() ? devices_->copies.why_not_after(device, stream) : status;
}

void Exchange::after(Device device, std::uint64_t stream, Continuation* then) {
  Status status = open_device(device);
  CopyId mark = 0;
  if (status.ok()) status = devices_->copies.mark(device, stream, mark);
  if (mark != 0) {
    devices_->marks.emplace(mark, Mark{0, then});
  } else {
    reached_.emplace_back(then, std::move(status));
  }
  stir();
}

void Exchange::go_on() {
  std::vector<std::pair<Continuation*, Status>> reached;
  reached.swap(reached_);
  for (auto& [then, status] : reached) {
    Report report;
    report.status = std::move(status);
    then->ended(0, report);
  }
  stir();
}

bool Exchange::poll_devices() {
  DeviceStage& devices = *devices_;
  std::vector<DeviceCopies::Ended> ended;
  devices.copies.poll(ended);
  const TimeNs now = now_ns();
  for (const auto& [id, status] : ended) {
    const TransferId flow = devices.out.flow_of(id);
    if (const auto direct = devices.direct.ended(id)) {
      cuda_ipc_.copied(direct->link, id, status);
      if (!status.ok()) node_.placed(direct->peer, direct->flow, "", 0, status, now);
      node_.let_go(direct->peer, direct->flow);
    } else if (devices.out.copied(id, status)) {
      if (!status.ok()) node_.source_failed(flow, status, now);
    } else if (!devices.in.copied(id, status, now)) {
      const Mark mark = devices.marks.extract(id).mapped();
      if (mark.then != nullptr) {
        reached_.emplace_back(mark.then, status);
      } else {
        status.ok() ? node_.release(mark.transfer, now) : node_.fail(mark.transfer, status, now);
      }
    }
  }
  devices.in.advance();
  std::vector<std::pair<LinkId, Frame>> ready;
  std::vector<std::pair<TransferId, Status>> failed;
  devices.out.advance(ready, failed);
  for (auto& [link, frame] : ready) {
    if (Port* to = port(link)) {
      to->transport->post(link, std::move(frame));
      to->transport->send(link, *this);
    }
  }
  for (const auto& [flow, status] : failed) node_.source_failed(flow, status, now);
  std::erase_if(copying_, [&](Report& report) {
    if (devices.copying(report.id)) return false;
    ended_.push_back(std::move(report));
    return true;
  });
  const bool moved = !ended.empty() || !ready.empty() || !failed.empty();
  if (moved) stir();
  return moved;
}

void Exchange::place(PeerId peer, TransferId flow, const Layout& to, const Body& bytes) {
  if (devices_) devices_->in.place(peer, flow, to, bytes);
}

bool Exchange::copying_in(PeerId peer, TransferId flow) const {
  return devices_ && (devices_->in.placing(peer, flow) || devices_->direct.placing(peer, flow));
}

bool Exchange::copying(SegmentId segment) const {
  return devices_ && devices_->copying_segment(segment);
}

std::map<Device, DeviceCopies::Counts> Exchange::gpus() const {
  if (!devices_) return {};
  return devices_->copies.counts();
}

void Exchange::end_copies() {
  if (!devices_) return;
  const TimeNs until = now_ns() + kLastCopies;
  while (devices_->copies.running() != 0 && now_ns() < until) {
    poll_devices();
    sched_yield();
  }
  poll_devices();
  if (devices_->copies.running() != 0) return;
  for (const auto& [id, mark] : devices_->marks) {
    if (mark.then != nullptr) reached_.emplace_back(mark.then, kNeverReached);
  }
  cuda_ipc_.attach(nullptr);
  for (const std::uint64_t block : std::exchange(pinned_, {})) {
    rdma.memory.drop({MemoryOwner::Kind::Pinned, block});
  }
  devices_.reset();
}

}  // namespace tent
