// Stage: transport. RdmaLink, how it begins and how it ends; see link.h.
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "transports/rdma/link.h"
#include "transports/rdma/neighbour.h"

namespace tent {
namespace {

// The device tries again after 4.096 us x 2^kTimeout = 0.27 s, kRetries times. Long before it gives
// up the session has found that the link is overdue, so this is only for a rail without others.
// Much less, and a device that is busy with a long read takes it for lost, and reads it all again.
// Seven would mean "for ever" on some devices.
constexpr std::uint8_t kTimeout = 16, kRetries = 6, kReceiverRetries = 6, kReceiverTimer = 12;
constexpr std::uint8_t kHops = 64;
constexpr std::uint32_t kInlineWanted = 256;
constexpr TimeNs kDrainPatience = 5 * kMillisecond;

Status move(const Verbs& verbs, ibv::Qp* qp, const std::string& device, ibv::QpAttr& attr, int mask,
            const char* where) {
  const int error = verbs.modify_qp(qp, &attr, mask | ibv::kMaskState);
  if (error == 0) return {};
  errno = error;
  return failed(errno_text("RDMA device " + device + ": the queue pair does not go to " + where));
}

}  // namespace

RdmaLink::RdmaLink(LinkId id, const Verbs& verbs, RdmaDevice& device, RdmaMemory& memory,
                   Retirement& retirement)
    : slices_in(state, *this),
      slices_out(state, *this),
      reader(state, *this, slices_in),
      writer(state, *this, slices_out),
      verbs_(verbs),
      device_(device),
      memory_(memory),
      retirement_(retirement) {
  state.id = id;
}

RdmaLink::~RdmaLink() { shut(); }

Status RdmaLink::make_arena(RdmaArena& arena, std::size_t bytes) {
  arena.bytes = std::make_unique<std::uint8_t[]>(bytes);
  arena.mr = verbs_.reg_mr(device_.pd(), arena.bytes.get(), bytes, ibv::kLocalWrite);
  if (arena.mr != nullptr) return {};
  return failed(errno_text("RDMA device " + device_.name() +
                           ": the buffers of a link cannot be registered (allow locked memory: "
                           "`ulimit -l`)"));
}

Status RdmaLink::open(const RdmaPort& port) {
  port_ = port;
  ibv::PortAttr attr{};
  if (verbs_.query_port(device_.context(), port.port, &attr) != 0) {
    return failed("RDMA device " + port.device + " has no port " + std::to_string(port.port));
  }
  if (attr.state != ibv::kPortActive) {
    return failed("RDMA port " + port.device + "/" + std::to_string(port.port) +
                  " is not active: look at its cable and its interface");
  }
  if (verbs_.query_gid(device_.context(), port.port, port.gid_index, &own_.gid) != 0) {
    return failed(errno_text("RDMA port " + port.device + "/" + std::to_string(port.port) +
                             " has no GID " + std::to_string(port.gid_index)));
  }
  Status status = make_arena(arena_, 2 * kSlots * kSlotBytes);
  if (status.ok()) status = make_queue_pair();
  if (!status.ok()) return status;
  own_.lid = attr.lid;
  own_.mtu = std::uint8_t(attr.active_mtu);
  own_.link_layer = attr.link_layer;
  own_.slots = kSlots;
  own_.slot_bytes = kSlotBytes;
  own_.reads_in = std::uint8_t(device_.limits().reads_in);
  own_.queue_pair = qp_->qp_num;
  own_.first_packet = qp_->qp_num * 2654435761u >> 8;  // 24 bits, another one for the next pair
  ibv::QpAttr init{};
  init.qp_state = ibv::kInit;
  init.port_num = port.port;
  init.qp_access_flags = ibv::kRemoteRead;  // nobody ever writes into this process
  status = move(verbs_, qp_, port.device, init,
                ibv::kMaskPkeyIndex | ibv::kMaskPort | ibv::kMaskAccessFlags, "INIT");
  if (!status.ok()) return status;
  for (std::uint32_t slot = 0; slot < kSlots && state.live(); ++slot) post_slot(slot);
  owed_ = 0;  // the peer knows of these
  return state.fault;
}

Status RdmaLink::make_queue_pair() {
  Status why;
  ibv::Cq* cq = device_.seat(*this, seat_, turn_, why);
  if (cq == nullptr) return why;
  seated_ = true;
  ibv::QpInitAttr wanted{};
  wanted.send_cq = wanted.recv_cq = cq;
  wanted.qp_type = ibv::kRc;
  wanted.cap = {kSendWork, kSlots, kSgesMax, 1, kInlineWanted};
  qp_ = verbs_.create_qp(device_.pd(), &wanted);
  if (qp_ == nullptr) {  // some devices have no room for inline data
    wanted.cap = {kSendWork, kSlots, kSgesMax, 1, 0};
    qp_ = verbs_.create_qp(device_.pd(), &wanted);
  }
  if (qp_ == nullptr)
    return failed(errno_text("RDMA device " + device_.name() + ": no queue pair"));
  inline_max_ = wanted.cap.max_inline_data;
  return {};
}

Status RdmaLink::join(const RdmaEndpoint& peer, bool dialed, std::shared_ptr<RdmaJoining>& out) {
  if (peer.magic != RdmaEndpoint::kMagic || peer.slots < 2 || peer.slots > 4096 ||
      peer.slot_bytes <= sizeof(Prefix) || peer.slot_bytes > (1u << 20) || peer.mtu < 1 ||
      peer.mtu > 5) {
    return failed("the peer's RDMA endpoint cannot be: is it another version?");
  }
  if (peer.link_layer != own_.link_layer) {
    return failed("one end is InfiniBand and the other Ethernet: no rail joins them");
  }
  answers_ = !dialed;
  peer_slots_ = peer.slots;
  payload_max_ = std::min(peer.slot_bytes, kSlotBytes) - std::uint32_t(sizeof(Prefix));
  reads_max_ = std::clamp<std::uint32_t>(peer.reads_in, 1, device_.limits().reads_out);
  out = joining_ = std::make_shared<RdmaJoining>(verbs_);
  joining_->qp = qp_;
  joining_->device = device_.name();
  joining_->own = own_.gid;
  ibv::QpAttr& receive = joining_->to_receive;
  receive.qp_state = ibv::kRtr;
  receive.path_mtu = std::min(own_.mtu, peer.mtu);
  receive.dest_qp_num = peer.queue_pair;
  receive.rq_psn = peer.first_packet;
  receive.max_dest_rd_atomic = std::uint8_t(device_.limits().reads_in);
  receive.min_rnr_timer = kReceiverTimer;
  receive.ah_attr.dlid = peer.lid;
  receive.ah_attr.port_num = port_.port;
  receive.ah_attr.is_global = own_.link_layer == ibv::kLinkEthernet || peer.lid == 0;
  receive.ah_attr.grh.dgid = peer.gid;
  receive.ah_attr.grh.sgid_index = port_.gid_index;
  receive.ah_attr.grh.hop_limit = kHops;
  ibv::QpAttr& send = joining_->to_send;
  send.qp_state = ibv::kRts;
  send.sq_psn = own_.first_packet;
  send.timeout = kTimeout;
  send.retry_cnt = kRetries;
  send.rnr_retry = kReceiverRetries;
  send.max_rd_atomic = std::uint8_t(reads_max_);
  return {};
}

Status RdmaJoining::run() {
  const std::lock_guard lock(running);
  if (qp == nullptr) return failed("the RDMA link is closed");
  const ibv::AhAttr& way = to_receive.ah_attr;
  if (way.is_global) {
    ask_for_neighbour(device, way.port_num, way.grh.sgid_index, own, way.grh.dgid);
  }
  Status status = move(verbs, qp, device, to_receive,
                       ibv::kMaskAv | ibv::kMaskPathMtu | ibv::kMaskDestQpn | ibv::kMaskRqPsn |
                           ibv::kMaskMaxDestRdAtomic | ibv::kMaskMinRnrTimer,
                       "RTR");
  if (!status.ok()) return status;
  return move(verbs, qp, device, to_send,
              ibv::kMaskTimeout | ibv::kMaskRetryCnt | ibv::kMaskRnrRetry | ibv::kMaskSqPsn |
                  ibv::kMaskMaxRdAtomic,
              "RTS");
}

void RdmaLink::greet() {
  if (may_send(1)) post_message(1, 0);
}

void RdmaLink::answer_greeting() {
  if (greeted_ && std::exchange(answers_, false)) greet();
}

void RdmaLink::shut() {
  state.closed = true;
  if (joining_) {
    const std::lock_guard lock(joining_->running);
    joining_->qp = nullptr;
  }
  if (std::exchange(seated_, false)) {
    bool quiet = qp_ == nullptr;
    if (!quiet) {
      mark_end();
      // Every read of ours has been given back when the mark is: nothing lands after it.
      quiet = marked_ && device_.drain(*this, kDrainPatience);
    }
    RetiredPair pair{&device_, seat_, std::exchange(qp_, nullptr), std::exchange(arena_, {}),
                     std::exchange(bounce_, {})};
    // Where the device does not come to the mark, only the pair's end proves the same.
    if (!quiet) pair.destroy(verbs_);
    device_.stand_up(seat_);
    retirement_.add(verbs_, std::move(pair));
  }
  for (RdmaArena* arena : {&arena_, &bounce_}) {
    if (arena->mr != nullptr) verbs_.dereg_mr(std::exchange(arena->mr, nullptr));
  }
  if (companion) ::shutdown(companion.get(), SHUT_RDWR);
  companion.reset();
}

void RdmaLink::mark_end() {
  ibv::QpAttr attr{};
  attr.qp_state = ibv::kErr;
  if (verbs_.modify_qp(qp_, &attr, ibv::kMaskState) != 0) return;
  ibv::SendWr wr{};
  wr.opcode = ibv::kSend;
  wr.send_flags = ibv::kSignaled;
  wr.wr_id = WorkNumber{seat_, turn_, false, posted_ & 0x7fffffff}.packed();
  ibv::SendWr* bad = nullptr;
  if (Verbs::post_send(qp_, &wr, &bad) != 0) return;
  works_[posted_++ % works_.size()] = Work::Mark;
  marked_ = true;
}

}  // namespace tent
