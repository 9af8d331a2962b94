// Stage: tests. A libibverbs without devices: the functions and structs that the driver uses, over
// a fabric inside the process (fake_fabric.cpp), and calls with which a test spoils it. It is a
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

void tell(World& w, int device, ibv::EventType type) {
  for (Opened* context : w.opened) {
    if (context->index != device) continue;
    ibv::AsyncEvent event{};
    event.element.port_num = 1;
    event.event_type = type;
    if (::write(context->event_fd, &event, sizeof event) != sizeof event) std::abort();
  }
}

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
  auto* context = new Opened{};
  context->device = device;
  context->index = int(reinterpret_cast<const char**>(device) - kNames);
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
  attr->max_mtu = attr->active_mtu = 5;
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
  Guard guard(w.mutex);
  auto& pair = *static_cast<Pair*>(on);
  if ((mask & ibv::kMaskDestQpn) != 0) pair.peer = attr->dest_qp_num;
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
  return status == kRetryExceeded    ? "transport retry counter exceeded"
         : status == ibv::kWcFlushed ? "Work Request Flushed Error"
                                     : "an error";
}

// ---- what a test says --------------------------------------------------------------------------

EXPORT void fake_reset() {
  Guard guard(world().mutex);
  for (Machine& machine : world().machines) {
    const std::uint64_t registered = machine.registered_bytes;
    machine = {};
    machine.registered_bytes = registered;
  }
  world().retry_s = 0.1;
  world().peer_memory = nullptr;
}
EXPORT void fake_rate(int device, double bytes_per_s, double latency_s) {
  Guard guard(world().mutex);
  world().machines[device].bytes_per_s = bytes_per_s;
  world().machines[device].latency_s = latency_s;
}
EXPORT void fake_cut(int device, int cut) {
  Guard guard(world().mutex);
  world().machines[device].cut = cut != 0;
}
EXPORT void fake_retry(double seconds) {
  Guard guard(world().mutex);
  world().retry_s = seconds;
}
EXPORT void fake_port(int device, int up) {
  Guard guard(world().mutex);
  world().machines[device].port_up = up != 0;
  tell(world(), device, up != 0 ? ibv::kEventPortActive : ibv::kEventPortErr);
}
EXPORT void fake_fatal(int device) {
  Guard guard(world().mutex);
  tell(world(), device, ibv::kEventDeviceFatal);
}
EXPORT void fake_fail_next(int device, unsigned status) {
  Guard guard(world().mutex);
  world().machines[device].fail_next = status;
}
EXPORT void fake_refuse(int device, int error, std::uint64_t above) {
  Guard guard(world().mutex);
  world().machines[device].refuse_errno = error;
  world().machines[device].refuse_above = above;
}
EXPORT void fake_gate(int device, double seconds, int passing) {
  Guard guard(world().mutex);
  Machine& machine = world().machines[device];
  machine.gate_s = seconds;
  machine.passing = passing;
  world().gate.notify_all();
}
EXPORT int fake_waiting(int device) {
  Guard guard(world().mutex);
  return world().machines[device].waiting;
}
EXPORT void fake_room(int device, std::uint64_t bytes) {
  Guard guard(world().mutex);
  Machine& machine = world().machines[device];
  machine.registered_bytes_max = machine.registered_bytes + bytes;
}
EXPORT void fake_lingers(int device, int on) {
  Guard guard(world().mutex);
  world().machines[device].lingers = on != 0;
}
EXPORT void fake_hold(int device, int on) {
  World& w = world();
  Guard guard(w.mutex);
  w.machines[device].hold = on != 0;
  if (on != 0) return;
  for (Queue* queue : w.queues) {
    if (queue->device != device) continue;
    const std::deque<ibv::Wc> held = std::exchange(queue->held, {});
    for (const ibv::Wc& wc : held) complete(w, queue, wc);
  }
}
EXPORT std::uint64_t fake_regions() {
  Guard guard(world().mutex);
  return world().regions.size();
}
EXPORT std::uint64_t fake_registrations() {
  Guard guard(world().mutex);
  return world().registrations;
}
EXPORT std::uint64_t fake_messages() {
  Guard guard(world().mutex);
  return world().messages;
}
EXPORT std::uint64_t fake_reads() {
  Guard guard(world().mutex);
  return world().reads;
}
EXPORT std::uint64_t fake_pairs() {
  Guard guard(world().mutex);
  return world().pairs.size();
}
