// Stage: transport. See device.h.
#include "transports/rdma/device.h"

#include <fcntl.h>
#include <sys/epoll.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "transports/rdma/link.h"

namespace tent {
namespace {

constexpr std::uint32_t kReadsMax = 16;  // at a time and link; more would only queue in the device
constexpr std::size_t kSeatsMax = 0xffff;

bool make_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

bool watch(int ready, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;  // no link's
  return make_nonblocking(fd) && ::epoll_ctl(ready, EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

std::unique_ptr<RdmaDevice> RdmaDevice::open(const Verbs& verbs, const std::string& name, int ready,
                                             Status& why) {
  std::unique_ptr<RdmaDevice> device(new RdmaDevice(verbs, name));
  int count = 0;
  ibv::Device** list = verbs.get_device_list(&count);
  for (int i = 0; list != nullptr && i < count; ++i) {
    if (name == verbs.get_device_name(list[i])) device->context_ = verbs.open_device(list[i]);
  }
  const int error = errno;
  if (list != nullptr) verbs.free_device_list(list);
  if (device->context_ == nullptr) {
    errno = error;
    why = failed(errno_text("RDMA device " + name + " cannot be opened (does the process have " +
                            "permission for /dev/infiniband?)"));
    return nullptr;
  }
  why = device->prepare(ready);
  if (!why.ok()) return nullptr;
  return device;
}

Status RdmaDevice::prepare(int ready) {
  ibv::DeviceAttr attr{};
  if (verbs_.query_device(context_, &attr) != 0) return failed("RDMA device " + name_ + " is mute");
  limits_.reads_out =
      std::clamp<std::uint32_t>(std::uint32_t(attr.max_qp_init_rd_atom), 1, kReadsMax);
  limits_.reads_in = std::clamp<std::uint32_t>(std::uint32_t(attr.max_qp_rd_atom), 1, kReadsMax);
  if (attr.max_qp > 0) limits_.links_max = std::uint32_t(attr.max_qp);
  limits_.work_max = std::uint32_t(attr.max_qp_wr);
  pd_ = verbs_.alloc_pd(context_);
  if (pd_ == nullptr) return failed(errno_text("RDMA device " + name_ + ": no protection domain"));
  channel_ = verbs_.create_comp_channel(context_);
  if (channel_ == nullptr || !watch(ready, channel_->fd) || !watch(ready, context_->async_fd)) {
    return failed(errno_text("RDMA device " + name_ + ": no event descriptor"));
  }
  return {};
}

RdmaDevice::~RdmaDevice() {
  for (const Queue& queue : queues_) verbs_.destroy_cq(queue.cq);
  if (channel_ != nullptr) verbs_.destroy_comp_channel(channel_);
  if (pd_ != nullptr) verbs_.dealloc_pd(pd_);
  if (context_ != nullptr) verbs_.close_device(context_);
}

ibv::Cq* RdmaDevice::queue_with_room(std::uint32_t& index, Status& why) {
  for (index = 0; index < queues_.size(); ++index) {
    if (queues_[index].links < kLinksPerQueue) return queues_[index].cq;
  }
  ibv::Cq* made =
      verbs_.create_cq(context_, kLinksPerQueue * RdmaLink::kWorkMax, nullptr, channel_, 0);
  if (made == nullptr) {
    why = failed(errno_text("RDMA device " + name_ + ": no completion queue"));
    return nullptr;
  }
  queues_.push_back({made, 0});
  armed_ = false;
  return made;
}

ibv::Cq* RdmaDevice::seat(RdmaLink& link, std::uint16_t& seat, std::uint16_t& turn, Status& why) {
  std::uint32_t queue = 0;
  ibv::Cq* cq = queue_with_room(queue, why);
  if (cq == nullptr) return nullptr;
  std::size_t free = 0;
  while (free < seats_.size() && seats_[free].taken) ++free;
  if (free == seats_.size()) seats_.emplace_back();
  if (free >= kSeatsMax) {
    why = failed("RDMA device " + name_ + " has as many links as can be told apart");
    return nullptr;
  }
  Seat& taken = seats_[free];
  taken.link = &link;
  taken.taken = true;
  ++taken.turn;
  taken.queue = queue;
  ++queues_[queue].links;
  seat = std::uint16_t(free);
  turn = taken.turn;
  return cq;
}

std::uint32_t RdmaDevice::links() const {
  const auto sits = [](const Seat& seat) { return seat.link != nullptr; };
  return std::uint32_t(std::count_if(seats_.begin(), seats_.end(), sits));
}

void RdmaDevice::leave(std::uint16_t seat) {
  --queues_[seats_[seat].queue].links;
  seats_[seat].link = nullptr;
  seats_[seat].taken = false;
}

RdmaLink* RdmaDevice::link_of(const WorkNumber& work) const {
  if (work.seat >= seats_.size() || seats_[work.seat].turn != work.turn) return nullptr;
  return seats_[work.seat].link;
}

void RdmaDevice::tell(const ibv::Wc& wc, std::vector<RdmaLink*>& touched) {
  const WorkNumber work = WorkNumber::of(wc.wr_id);
  RdmaLink* link = link_of(work);
  if (link == nullptr) return;
  link->completed(work, wc);
  if (link->mark()) touched.push_back(link);
}

bool RdmaDevice::poll(std::vector<RdmaLink*>& touched) {
  bool any = !aside_.empty();
  if (any) {
    for (const ibv::Wc& wc : aside_) tell(wc, touched);
    aside_.clear();
  }
  ibv::Wc wcs[kBatch];
  for (const Queue& queue : queues_) {
    const int count = Verbs::poll_cq(queue.cq, kBatch, wcs);
    for (int i = 0; i < count; ++i) tell(wcs[i], touched);
    any |= count > 0;
  }
  return any;
}

bool RdmaDevice::take_aside() {
  ibv::Wc wcs[kBatch];
  for (const Queue& queue : queues_) {
    const int count = Verbs::poll_cq(queue.cq, kBatch, wcs);
    if (count > 0) aside_.insert(aside_.end(), wcs, wcs + count);
  }
  return !aside_.empty();
}

bool RdmaDevice::drain(RdmaLink& link, TimeNs patience) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::nanoseconds(patience);
  for (;;) {
    take_aside();
    std::erase_if(aside_, [&](const ibv::Wc& wc) {
      const WorkNumber work = WorkNumber::of(wc.wr_id);
      if (link_of(work) != &link) return false;
      link.completed(work, wc);
      return true;
    });
    if (link.drained()) return true;
    if (Clock::now() > end) return false;
  }
}

bool RdmaDevice::take_notices() {
  ibv::Cq* from = nullptr;
  void* ignored = nullptr;
  bool told = false;
  while (verbs_.get_cq_event(channel_, &from, &ignored) == 0) {
    verbs_.ack_cq_events(from, 1);
    told = true;
  }
  return told;
}

void RdmaDevice::disarm() {
  if (take_notices()) armed_ = false;
}

bool RdmaDevice::arm() {
  if (!aside_.empty()) return false;
  if (take_notices() || !armed_) {
    for (const Queue& queue : queues_) Verbs::req_notify_cq(queue.cq);
    armed_ = true;
  }
  return !take_aside();
}

}  // namespace tent
