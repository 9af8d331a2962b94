// Stage: engine. See exchange.h.
#include "engine/exchange.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "engine/clock.h"

namespace tent {
namespace {

constexpr unsigned kTcpPause = 8;  // with same-host links too, quiet sockets are asked this seldom
constexpr TimeNs kTickSoon = 5 * kMillisecond;  // whatever was begun is looked at again after this
constexpr std::size_t kPastLinks = 64;
constexpr TimeNs kFreedLook = 500 * kMillisecond;
constexpr TimeNs kIdleMin = 1 * kSecond;  // a link that carried something since does not make room
constexpr const char* kIdle = "the peer closed it: it carried nothing";
constexpr const char* kUsedAgain = "the peer closed it as idle when it was used again";

Request message(Request::Op op, PeerId peer, std::uint64_t context, std::uint64_t tag,
                TimeNs expires) {
  Request request;
  request.op = op;
  request.peer = peer;
  request.context = context;
  request.tag = tag;
  request.expires = expires;
  return request;
}

}  // namespace

Exchange::Exchange(const EngineSettings& settings, int wait_set, ControlEvents& events)
    : doorbell(wait_set),
      rdma(wait_set, settings.rdma_library),
      events_(events),
      tcp_(wait_set),
      shm_(wait_set, doorbell),
      cma_(wait_set, doorbell),
      node_(settings, *this),
      wait_set_(wait_set),
      settings_(settings),
      checksum_(settings.checksum),
      cuda_ipc_(wait_set, doorbell) {
  rdma.memory.wanted = settings.rdma;
  rdma.links_max = settings.rdma_links_max;
  rdma.memory.kept_bytes_max = settings.rdma_kept_bytes_max;
}

Exchange::~Exchange() = default;

bool Exchange::poll(TimeNs now) {
  bool moved = devices_ && poll_devices();
  if (local_ports_ != 0) {
    moved |= shm_.poll(*this);
    moved |= cma_.poll(*this);
    moved |= poll_cuda_ipc();
  }
  if (rdma.active()) {
    moved |= rdma.poll(*this);
    if (devices_) look_at_pairs();
    if (rdma.memory.complains()) {
      events_.add({ControlEvent::Kind::Said, 0, 0, "", rdma.memory.take_complaint()});
    }
  }
  // Asking the kernel costs more than a look into shared memory, so it must not slow that down.
  if (tcp_ports_ != 0 && (local_ports_ + rdma_ports_ == 0 || tcp_quiet_ % kTcpPause == 0)) {
    const bool tcp_moved = tcp_.poll(*this);
    tcp_quiet_ = tcp_moved ? 0 : 1;
    moved |= tcp_moved;
  } else {
    ++tcp_quiet_;
  }
  if (moved) stir();
  if (now >= due_) let_time_pass(now);
  settle();
  return moved || (devices_ && devices_->ends_soon(now));
}

bool Exchange::prepare_sleep() {
  asleep_ = true;
  if (devices_) {
    devices_->set_alarm();
    devices_->alarm.hush();
  }
  return rdma.prepare_sleep() && doorbell.prepare_sleep();
}

void Exchange::woke() {
  asleep_ = false;
  doorbell.woke();
}

void Exchange::let_time_pass(TimeNs now) {
  due_ = node_.tick(now);
  if (now >= freed_look_) freed_look_ = cuda_ipc_.look_for_freed() ? now + kFreedLook : 0;
  if (freed_look_ != 0) due_ = std::min(due_, freed_look_);
  stirred_ = true;
  operations.tell_late();
  if (now < remind_at_) {
    due_ = std::min(due_, remind_at_);
  } else {
    remind_at_ = kNever;
    std::exchange(reminder_, nullptr)();
  }
}

void Exchange::settle() {
  for (;;) {
    if (stirred_) {
      const TimeNs now = now_ns();
      if (due_soon_) {
        due_ = std::min(due_, now + kTickSoon);
        busy_at_ = now;
      }
      stirred_ = due_soon_ = false;
      node_.flush(now);
    }
    if (!outgoing_.empty()) {
      send_out();
    } else if (!downs_.empty()) {
      take_down();
    } else if (!ended_.empty()) {
      finish_ended();
    } else if (!reached_.empty()) {
      go_on();
    } else if (!stirred_) {
      if (devices_ && asleep_) devices_->set_alarm();
      return;
    }
  }
}

void Exchange::send_out() {
  std::vector<std::pair<LinkId, Frame>> frames;
  frames.swap(outgoing_);
  for (auto& [link, frame] : frames) {
    Port* to = port(link);
    if (!to) continue;  // closed since it was posted; the Node sends it again elsewhere
    if (frame.header.kind == FrameKind::Slice) {
      to->rail->bytes_sent += frame.header.body_bytes;
      ++to->rail->slices_sent;
    }
    const bool staged = devices_ && to->kind != RailKind::CudaIpc;
    if (staged && devices_->out.keep(link, frame, reads_gpu(link, *to, frame.header))) continue;
    to->transport->post(link, std::move(frame));
    if (std::exchange(to->posted, true)) continue;
    posted_.push_back(link);
  }
  for (const LinkId link : posted_) {
    Port* to = port(link);
    to->posted = false;
    to->transport->send(link, *this);
  }
  posted_.clear();
  if (outgoing_.empty()) {  // keep the memory for the next round
    frames.clear();
    outgoing_.swap(frames);
  }
}

void Exchange::take_down() {
  std::vector<Down> downs;
  downs.swap(downs_);
  for (auto& [link, why, rested] : downs) {
    Port* gone = port(link);
    if (!gone) continue;
    why.rail = gone->rail->name;
    gone->transport->close(link);
    if (rested) {
      const bool idle = node_.link_rested(link, now_ns());
      forget(link, idle ? kIdle : kUsedAgain, idle);
    } else {
      forget(link, why.text);
      node_.link_down(link, why, now_ns());
    }
    stir();
  }
}

void Exchange::finish_ended() {
  std::vector<Report> reports;
  reports.swap(ended_);
  for (Report& report : reports) {
    rdma.memory.drop({MemoryOwner::Kind::Transfer, report.id});
    operations.finish(std::move(report));
  }
  stir();  // so that poll() is called again soon, which tells the late watches
}

Status Exchange::connect(PeerId peer, const LinkInfo& info, const Connection& connection) {
  Transport* transport = transport_for(info.kind);
  Status status;
  if (!node_.alive(peer)) {
    status = {Code::PeerLost, "the peer is lost: add it anew before adding links", info.rail};
  } else if (port(connection.link)) {
    status = {Code::Failed, "link numbers are used once, and this one is in use", info.rail};
  } else if (!transport) {
    status = {Code::Failed, "there is no transport for this kind of rail", info.rail};
  }
  if (!status.ok()) {
    for (const int fd : connection.fds) ::close(fd);
    return status;
  }
  status = transport->connect(connection);
  if (!status.ok()) return status;
  Port made{peer, info.kind, transport, rails.open(peer, info.rail, info.kind, node_),
            connection.fds};
  ++made.rail->links_made;
  ++ports_of(info.kind);
  ports_.emplace(connection.link, std::move(made));
  node_.link_up(peer, connection.link, info, now_ns());
  stir();
  return status;
}

void Exchange::disconnect(LinkId link, const Status& why) { down(link, why); }

std::vector<int> Exchange::descriptors() const {
  std::vector<int> all;
  for (const auto& [link, port] : ports_) all.insert(all.end(), port.fds.begin(), port.fds.end());
  return all;
}

OperationRef Exchange::start(Request request) {
  request.id = node_.next_id();
  if (request.local.device() != kHost) order(request);
  OperationRef operation = operations.open(request);
  hold(request);
  node_.submit(std::move(request), now_ns());
  stir();
  return operation;
}

void Exchange::watch(const OperationRef& operation, Watch watch) {
  operations.watch(operation, watch);
  stir();  // one that has ended is told by the next poll() that comes in time
}

// ---- Transfers

TimeNs Exchange::now() const { return now_ns(); }

TransferId Exchange::launch(Request request, const Memory& memory, Continuation* then) {
  request.id = node_.next_id();
  request.local = Layout::contiguous(memory.address, memory.bytes, memory.device);
  const TransferId id = request.id;
  operations.follow(request, then);
  hold(request);
  node_.submit(std::move(request), now_ns());
  stir();
  return id;
}

TransferId Exchange::send(PeerId peer, std::uint64_t context, std::uint64_t tag,
                          const Memory& memory, TimeNs expires, Continuation* then) {
  return launch(message(Request::Op::Send, peer, context, tag, expires), memory, then);
}

TransferId Exchange::recv(PeerId peer, std::uint64_t context, std::uint64_t tag,
                          const Memory& memory, TimeNs expires, Continuation* then) {
  return launch(message(Request::Op::Recv, peer, context, tag, expires), memory, then);
}

void Exchange::cancel(TransferId id) { node().cancel(id, Code::Cancelled, now_ns()); }

void Exchange::remind(TimeNs when, std::function<void()> then) {
  remind_at_ = when;
  reminder_ = std::move(then);
  due_ = std::min(due_, when);
}

// ---- Links

Exchange::Port* Exchange::port(LinkId link) {
  const auto found = ports_.find(link);
  return found == ports_.end() ? nullptr : &found->second;
}

Transport* Exchange::transport_for(RailKind kind) {
  switch (kind) {
    case RailKind::Tcp:
      return &tcp_;
    case RailKind::Shm:
      return &shm_;
    case RailKind::Cma:
      return &cma_;
    case RailKind::Rdma:
      return &rdma;
    case RailKind::CudaIpc:
      return &cuda_ipc_;
    default:
      return nullptr;
  }
}

std::size_t& Exchange::ports_of(RailKind kind) {
  if (kind == RailKind::Tcp) return tcp_ports_;
  return kind == RailKind::Rdma ? rdma_ports_ : local_ports_;
}

RailRef Exchange::rail_of(LinkId link) {
  if (const Port* up = port(link)) return up->rail;
  for (const auto& [past, rail] : past_) {
    if (past == link) return rail;
  }
  return nullptr;
}

Status Exchange::open_rdma(LinkId link, const RdmaPort& at, RdmaEndpoint& out) {
  if (rdma.full(at.device)) {
    const LinkId idle = node().longest_idle(rdma.links_on(at.device), now_ns() - kIdleMin);
    if (idle != 0) node().rest(idle);
  }
  return rdma.open(link, at, out);
}

void Exchange::forget(LinkId link, const std::string& why, bool rested) {
  const auto found = ports_.find(link);
  const Port& gone = found->second;
  ++(rested ? gone.rail->links_rested : gone.rail->links_lost);
  const auto kind = rested ? ControlEvent::Kind::Rested : ControlEvent::Kind::Down;
  events_.add({kind, gone.peer, link, gone.rail->name, why});
  --ports_of(gone.kind);
  past_.emplace_front(link, gone.rail);
  if (past_.size() > kPastLinks) past_.pop_back();
  if (devices_) devices_->forget(link);
  auto copies = gone.transport->peer_copies(link);
  if (copies) copying_peers_.emplace_back(gone.peer, std::move(copies));
  ports_.erase(found);
}

}  // namespace tent
