// Stage: tests. A libibverbs without devices: the functions and structs that the driver uses, over
// a fabric inside the process (fake_fabric.cpp), which a test spoils (fake_says.cpp). It is a
// shared library of its own, so that what is tested is the very code that opens the real one. Any
// thread; one mutex.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "fake.h"

using namespace fake;

namespace {

int poll_queue(ibv::Cq* from, int count, ibv::Wc* out) {
  World& w = world();
  Guard guard(w.mutex);
  if (w.retry_s < 1e6) carry_all(w);
  auto* queue = static_cast<Queue*>(from);
  int taken = 0;
  for (; taken < count && !queue->done.empty(); ++taken) {
    out[taken] = queue->done.front();
    queue->done.pop_front();
  }
  return taken;
}

int request_notice(ibv::Cq* from, int) {
  Guard guard(world().mutex);
  static_cast<Queue*>(from)->armed = true;
  return 0;
}

int post_send(ibv::Qp* on, ibv::SendWr* wr, ibv::SendWr**) {
  World& w = world();
  Guard guard(w.mutex);
  auto& pair = *static_cast<Pair*>(on);
  for (; wr != nullptr; wr = wr->next) {
    ++(wr->opcode == ibv::kSend ? w.messages : w.reads);
    Work work{*wr, {wr->sg_list, wr->sg_list + wr->num_sge}, {}, 0, Clock::now(), {}};
    for (const ibv::Sge& sge : work.sges) {
      work.bytes += sge.length;
      const auto* data = reinterpret_cast<const std::uint8_t*>(sge.addr);
      if ((wr->send_flags & ibv::kInline) != 0) {
        work.carried.insert(work.carried.end(), data, data + sge.length);
      }
    }
    Machine& machine = w.machines[pair.device];
    if (machine.bytes_per_s > 0) {
      machine.free_at = std::max(machine.free_at, Clock::now()) +
                        std::chrono::duration_cast<Clock::duration>(
                            Seconds(double(work.bytes + 64) / machine.bytes_per_s));
      work.ready =
          machine.free_at + std::chrono::duration_cast<Clock::duration>(Seconds(machine.latency_s));
    }
    pair.sends.push_back(std::move(work));
  }
  if (pair.now == ibv::kErr) flush(w, pair);
  carry(w, pair);
  return 0;
}

int post_receive(ibv::Qp* on, ibv::RecvWr* wr, ibv::RecvWr**) {
  World& w = world();
  Guard guard(w.mutex);
  auto& pair = *static_cast<Pair*>(on);
  for (; wr != nullptr; wr = wr->next) {
    pair.receives.push_back({wr->wr_id, {wr->sg_list, wr->sg_list + wr->num_sge}});
  }
  if (pair.now == ibv::kErr) flush(w, pair);
  return 0;
}

void pipe_ends(int& read_fd, int& write_fd) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) std::abort();
  ::fcntl(ends[1], F_SETFL, O_NONBLOCK);
  read_fd = ends[0];
  write_fd = ends[1];
}

const char* kNames[kDevices] = {"fake0", "fake1", "fake2", "fake3"};

}  // namespace

// ---- what libibverbs has -----------------------------------------------------------------------

EXPORT ibv::Device** ibv_get_device_list(int* count) {
  auto** list = new ibv::Device*[kDevices + 1]();
  for (int i = 0; i < kDevices; ++i) list[i] = reinterpret_cast<ibv::Device*>(&kNames[i]);
  *count = kDevices;
  return list;
}
EXPORT void ibv_free_device_list(ibv::Device** list) { delete[] list; }
EXPORT const char* ibv_get_device_name(ibv::Device* device) {
  return *reinterpret_cast<const char**>(device);
}
EXPORT ibv::Context* ibv_open_device(ibv::Device* device) {
  Guard guard(world().mutex);
  const int index = int(reinterpret_cast<const char**>(device) - kNames);
  errno = world().machines[index].open_errno;
  if (errno != 0) return nullptr;
  auto* context = new Opened{};
  context->device = device;
  context->index = index;
  pipe_ends(context->async_fd, context->event_fd);
  context->ops.poll_cq = poll_queue;
  context->ops.req_notify_cq = request_notice;
  context->ops.post_send = post_send;
  context->ops.post_recv = post_receive;
  world().opened.insert(context);
  return context;
}
EXPORT int ibv_close_device(ibv::Context* given) {
  Guard guard(world().mutex);
  auto* context = static_cast<Opened*>(given);
  world().opened.erase(context);
  ::close(context->async_fd);
  ::close(context->event_fd);
  delete context;
  return 0;
}
EXPORT int ibv_query_device(ibv::Context*, ibv::DeviceAttr* attr) {
  *attr = {};
  attr->max_qp_wr = 4096;
  attr->max_cqe = 1 << 20;
  attr->max_qp_rd_atom = attr->max_qp_init_rd_atom = 16;
  return 0;
}
EXPORT int ibv_query_port(ibv::Context* context, std::uint8_t port, ibv::PortAttr* attr) {
  Guard guard(world().mutex);
  *attr = {};
  if (port != 1) return EINVAL;
  const Machine& machine = world().machines[static_cast<Opened*>(context)->index];
  attr->state = machine.port_up ? ibv::kPortActive : 1;
  attr->max_mtu = 5;
  attr->active_mtu = machine.mtu;
  attr->link_layer = ibv::kLinkEthernet;
  return 0;
}
EXPORT int ibv_query_gid(ibv::Context* context, std::uint8_t, int index, ibv::Gid* gid) {
  const int device = static_cast<Opened*>(context)->index;
  *gid = {};
  if (index > 1) return -1;
  const std::uint8_t mapped[6] = {0xff, 0xff, 10, 99, std::uint8_t(device), 1};
  std::memcpy(gid->raw + 10, mapped, sizeof mapped);
  return 0;
}
EXPORT ibv::Pd* ibv_alloc_pd(ibv::Context* context) { return new ibv::Pd{context, 0}; }
EXPORT int ibv_dealloc_pd(ibv::Pd* pd) {
  delete pd;
  return 0;
}
EXPORT ibv::CompChannel* ibv_create_comp_channel(ibv::Context* context) {
  auto* channel = new Channel{};
  channel->context = context;
  pipe_ends(channel->fd, channel->write_fd);
  return channel;
}
EXPORT int ibv_destroy_comp_channel(ibv::CompChannel* given) {
  auto* channel = static_cast<Channel*>(given);
  ::close(channel->fd);
  ::close(channel->write_fd);
  delete channel;
  return 0;
}
EXPORT ibv::Cq* ibv_create_cq(ibv::Context* context, int entries, void*, ibv::CompChannel* channel,
                              int) {
  Guard guard(world().mutex);
  auto* queue = new Queue{};
  queue->context = context;
  queue->channel = channel;
  queue->cqe = entries;
  queue->device = static_cast<Opened*>(context)->index;
  world().queues.insert(queue);
  return queue;
}
EXPORT int ibv_destroy_cq(ibv::Cq* queue) {
  Guard guard(world().mutex);
  world().queues.erase(static_cast<Queue*>(queue));
  delete static_cast<Queue*>(queue);
  return 0;
}
EXPORT int ibv_get_cq_event(ibv::CompChannel* channel, ibv::Cq** queue, void** context) {
  *context = nullptr;
  return ::read(channel->fd, queue, sizeof *queue) == sizeof *queue ? 0 : -1;
}
EXPORT void ibv_ack_cq_events(ibv::Cq*, unsigned) {}
EXPORT ibv::Qp* ibv_create_qp(ibv::Pd* pd, ibv::QpInitAttr* attr) {
  Guard guard(world().mutex);
  auto* pair = new Pair{};
  pair->context = pd->context;
  pair->pd = pd;
  pair->send_cq = attr->send_cq;
  pair->recv_cq = attr->recv_cq;
  pair->qp_num = world().next_number++;
  pair->device = static_cast<Opened*>(pd->context)->index;
  world().pairs[pair->qp_num] = pair;
  return pair;
}
EXPORT int ibv_modify_qp(ibv::Qp* on, ibv::QpAttr* attr, int mask) {
  World& w = world();
  std::unique_lock guard(w.mutex);
  auto& pair = *static_cast<Pair*>(on);
  if (attr->qp_state == ibv::kRtr) {
    w.gate.wait(guard, [&] { return !w.machines[pair.device].join_gate; });
  }
  if ((mask & ibv::kMaskDestQpn) != 0) pair.peer = attr->dest_qp_num;
  if ((mask & ibv::kMaskPathMtu) != 0) pair.mtu = attr->path_mtu;
  pair.now = attr->qp_state;
  if (pair.now != ibv::kErr) return 0;
  const bool reads = !pair.sends.empty() && pair.sends.front().wr.opcode == ibv::kRdmaRead;
  if (w.machines[pair.device].lingers && reads) {
    // As a device may: what is under way lands up to the moment at which its end is told.
    const Work work = pair.sends.front();
    const auto end = Clock::now() + std::chrono::microseconds(500);
    while (Clock::now() < end) {
    }
    const std::uint8_t* from = bytes_at(w, work.wr.wr.rdma.rkey, work.wr.wr.rdma.remote_addr);
    for (const ibv::Sge& sge : work.sges) {
      std::memcpy(bytes_at(w, sge.lkey, sge.addr), from, sge.length);
      from += sge.length;
    }
  }
  flush(w, pair);
  return 0;
}
EXPORT int ibv_destroy_qp(ibv::Qp* on) {
  Guard guard(world().mutex);
  auto* pair = static_cast<Pair*>(on);
  world().pairs.erase(pair->qp_num);
  delete pair;
  return 0;
}
EXPORT int ibv_get_async_event(ibv::Context* context, ibv::AsyncEvent* event) {
  return ::read(context->async_fd, event, sizeof *event) == sizeof *event ? 0 : -1;
}
EXPORT void ibv_ack_async_event(ibv::AsyncEvent*) {}
EXPORT const char* ibv_wc_status_str(ibv::WcStatus status) {
  return status == ibv::kWcRetryExceeded ? "transport retry counter exceeded"
         : status == ibv::kWcFlushed     ? "Work Request Flushed Error"
                                         : "an error";
}
