// Stage: transport. See rdma.h.
#include "transports/rdma.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <system_error>
#include <utility>

namespace tent {
namespace {

constexpr int kEventsMax = 32;
constexpr char kRests = 'R';  // the last that is said of a link: it was closed because it was idle
// While the engine is polled without pause, events other than completions are looked at this
// seldom: a system call each time would cost more than the completions do.
constexpr std::uint32_t kPollsPerLook = 64;

const char* words(ibv::EventType type) {
  switch (type) {
    case ibv::kEventPortErr:
      return "the port went down";
    case ibv::kEventLidChange:
      return "the port's LID changed";
    case ibv::kEventGidChange:
      return "the port's GIDs changed";
    case ibv::kEventDeviceFatal:
      return "the device failed";
    case ibv::kEventCqErr:
      return "a completion queue failed";
    default:
      return nullptr;
  }
}

}  // namespace

RdmaTransport::RdmaTransport(int wait_set, std::string library, std::uint64_t poll_bytes)
    : library_(std::move(library)),
      poll_bytes_(poll_bytes),
      ready_(::epoll_create1(EPOLL_CLOEXEC)) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = ready_.get();
  if (!ready_ || ::epoll_ctl(wait_set, EPOLL_CTL_ADD, ready_.get(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "RDMA transport: epoll");
  }
}

RdmaTransport::~RdmaTransport() {
  memory.gpus.stop();
  links_.each([](RdmaLink& link) { link.shut(); });
  for (const auto& [name, device] : devices_) memory.leave(device->pd());
}

// ---- beginnings ----

RdmaDevice* RdmaTransport::device(const std::string& name, Status& why) {
  if (!verbs_) verbs_ = Verbs::open(library_, why);
  if (!verbs_) return nullptr;
  std::unique_ptr<RdmaDevice>& found = devices_[name];
  if (!found) found = RdmaDevice::open(*verbs_, name, ready_.get(), why);
  if (!found) devices_.erase(name);
  return devices_.contains(name) ? devices_[name].get() : nullptr;
}

Status RdmaTransport::open(LinkId id, const RdmaPort& port, RdmaEndpoint& out) {
  if (links_.find(id) != nullptr) return failed("the link number is in use");
  retirement_.collect();
  Status why;
  RdmaDevice* on = device(port.device, why);
  if (on == nullptr) return why;
  if (full(port.device)) {
    return failed("RDMA device " + port.device + " has " + std::to_string(on->links()) +
                  " links, as many as it may (TENT_RDMA_LINKS_MAX), and none of them is idle");
  }
  auto link = std::make_unique<RdmaLink>(id, *verbs_, *on, memory, retirement_);
  why = link->open(port);
  if (!why.ok()) return why;
  memory.gpus.learn(*verbs_, on->pd(), port);
  out = link->endpoint();
  links_.insert(id, std::move(link));
  return {};
}

Status RdmaTransport::join(LinkId id, const RdmaEndpoint& peer, bool dialed,
                           std::shared_ptr<RdmaJoining>& out) {
  RdmaLink* link = links_.find(id);
  if (link == nullptr) return failed("the RDMA link is closed");
  return link->join(peer, dialed, out);
}

Status RdmaTransport::joined(LinkId id, bool dialed) {
  RdmaLink* link = links_.find(id);
  if (link == nullptr) return failed("the RDMA link is closed");
  if (dialed) link->greet();
  return link->state.fault;
}

bool RdmaTransport::greeted(LinkId id, Status& why) {
  RdmaLink* link = links_.find(id);
  if (link == nullptr) {
    why = failed("the RDMA link is closed");
    return false;
  }
  why = link->state.fault;
  return why.ok() && link->greeted();
}

Status RdmaTransport::connect(const Connection& connection) {
  std::vector<Descriptor> owned;
  for (const int fd : connection.fds) owned.emplace_back(fd);
  RdmaLink* link = links_.find(connection.link);
  if (link == nullptr || link->up || !link->greeted() || owned.size() > 1) {
    return failed("an RDMA link is added when both ends have greeted, with its control connection");
  }
  if (!owned.empty()) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP;
    event.data.u64 = connection.link;
    if (::epoll_ctl(ready_.get(), EPOLL_CTL_ADD, owned[0].get(), &event) != 0) {
      return failed(errno_text("the control connection cannot be waited for"));
    }
    link->companion = std::move(owned[0]);
  }
  link->up = true;
  if (link->mark()) again_.push_back(link);  // what came during the handshake
  return {};
}

// ---- memory ----

Reach RdmaTransport::reach(LinkId id, const Pieces& pieces) const {
  RdmaLink* link = links_.find(id);
  if (link == nullptr) return Reach::No;
  return link->names(pieces) ? Reach::Direct : Reach::Staged;
}

bool RdmaTransport::names(LinkId id, const Pieces& pieces) const {
  RdmaLink* link = links_.find(id);
  return link != nullptr && link->names(pieces);
}

bool RdmaTransport::places(LinkId id, const Pieces& pieces) const {
  RdmaLink* link = links_.find(id);
  return link != nullptr && link->places(pieces);
}

bool RdmaTransport::moves(LinkId id, Device gpu) {
  RdmaLink* link = links_.find(id);
  return link != nullptr && memory.gpus.works(link->device().pd(), gpu);
}

Status RdmaTransport::register_region(const Region& region) {
  const MemoryOwner owner{MemoryOwner::Kind::Region, region.id};
  memory.drop(owner);
  if (region.bytes != 0) memory.hold(owner, {{region.address, region.bytes}});
  return {};
}

// ---- at work ----

void RdmaTransport::post(LinkId id, Frame frame) {
  RdmaLink* link = links_.find(id);
  if (link != nullptr) link->writer.push(std::move(frame));
}

void RdmaTransport::send(LinkId id, Receiver& receiver) {
  RdmaLink* link = links_.find(id);
  if (link == nullptr || !link->state.live()) return;
  LinkTable<RdmaLink>::Hold hold(links_);
  bool moved = false;
  const bool more = link->writer.send(receiver, poll_bytes_, moved);
  // A link that broke is reported by poll(), never in the middle of what its caller is doing.
  if (!link->state.closed && (more || !link->state.live()) && link->mark()) again_.push_back(link);
}

bool RdmaTransport::poll(Receiver& receiver) {
  if (links_.empty()) return false;
  LinkTable<RdmaLink>::Hold hold(links_);
  if (look_ || ++polls_ % kPollsPerLook == 0) look_around(receiver);
  touched_.swap(again_);
  again_.clear();
  bool moved = !touched_.empty();
  for (const auto& [name, device] : devices_) moved |= device->poll(touched_);
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    RdmaLink& link = *touched_[i];
    link.unmark();
    if (!link.state.closed) serve(link, receiver);
  }
  touched_.clear();
  return moved;
}

void RdmaTransport::serve(RdmaLink& link, Receiver& receiver) {
  link.answer_greeting();
  if (!link.up) return;  // a fault is told to whoever shakes hands
  bool moved = false, more = link.reader.receive(receiver, poll_bytes_, moved);
  const bool full = link.slices_in.full();
  if (link.state.live()) more |= link.slices_in.advance(receiver, poll_bytes_, moved);
  more |= full && !link.slices_in.full();
  if (link.state.live()) more |= link.writer.send(receiver, poll_bytes_, moved);
  if (link.state.live()) link.return_credits();
  if (link.state.closed) return;
  if (!link.state.live()) return end(link, receiver);
  if (more && link.mark()) again_.push_back(&link);
}

void RdmaTransport::end(RdmaLink& link, Receiver& receiver) {
  const Status why = link.state.fault;
  const LinkId id = link.state.id;
  close(id);
  receiver.down(id, why);
}

void RdmaTransport::close(LinkId id) {
  RdmaLink* link = links_.find(id);
  if (link == nullptr) return;
  link->shut();
  std::erase(again_, link);
  links_.drop(id);
}

void RdmaTransport::close_all() {
  std::vector<LinkId> all;
  links_.each([&](RdmaLink& link) { all.push_back(link.state.id); });
  for (const LinkId link : all) close(link);
}

void RdmaTransport::rest(LinkId id) {
  const RdmaLink* link = links_.find(id);
  if (link != nullptr && link->companion) {
    ::send(link->companion.get(), &kRests, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  close(id);
}

bool RdmaTransport::full(const std::string& name) const {
  const auto found = devices_.find(name);
  if (found == devices_.end()) return false;
  const RdmaDevice& device = *found->second;
  return device.links() >= std::min(links_max, device.limits().links_max);
}

std::vector<LinkId> RdmaTransport::links_on(const std::string& device) {
  std::vector<LinkId> found;
  links_.each([&](RdmaLink& link) {
    if (link.up && link.device().name() == device) found.push_back(link.state.id);
  });
  return found;
}

bool RdmaTransport::placing(LinkId id, TransferId flow) const {
  const RdmaLink* link = links_.find(id);
  return link != nullptr && link->slices_in.placing(flow);
}

bool RdmaTransport::prepare_sleep() {
  if (links_.empty()) {
    fall_silent();
    return true;
  }
  bool quiet = again_.empty() && !look_;
  for (const auto& [name, device] : devices_) quiet &= device->arm();
  epoll_event event;
  if (quiet && ::epoll_wait(ready_.get(), &event, 1, 0) > 0) {
    look_ = true;
    quiet = false;
  }
  return quiet;
}

// What the devices still say after the last link would wake up the engine again and again.
void RdmaTransport::fall_silent() {
  ibv::AsyncEvent event;
  for (const auto& [name, device] : devices_) {
    device->disarm();
    while (verbs_->get_async_event(device->context(), &event) == 0) {
      verbs_->ack_async_event(&event);
    }
  }
}

// ---- what is heard beside completions ----

void RdmaTransport::look_around(Receiver& receiver) {
  look_ = false;
  epoll_event events[kEventsMax];
  const int count = ::epoll_wait(ready_.get(), events, kEventsMax, 0);
  bool devices = false;
  for (int i = 0; i < count; ++i) {
    RdmaLink* link = links_.find(events[i].data.u64);
    devices |= events[i].data.u64 == 0;
    if (link == nullptr || !link->state.live()) continue;
    // Nothing but this is ever said on a control connection after the handshake.
    char said = 0;
    const auto bytes = ::recv(link->companion.get(), &said, 1, MSG_DONTWAIT);
    if (bytes == 1 && said == kRests) {
      const LinkId id = link->state.id;
      close(id);
      receiver.rested(id);
    } else {
      link->state.broke("the peer closed the connection");
      end(*link, receiver);
    }
  }
  if (!devices) return;
  for (const auto& [name, device] : devices_) hear(*device, receiver);
}

void RdmaTransport::hear(RdmaDevice& device, Receiver& receiver) {
  ibv::AsyncEvent event;
  while (verbs_->get_async_event(device.context(), &event) == 0) {
    const ibv::EventType type = event.event_type;
    const int port = event.element.port_num;
    verbs_->ack_async_event(&event);
    const char* what = words(type);
    if (what == nullptr) continue;
    const bool whole = type == ibv::kEventDeviceFatal || type == ibv::kEventCqErr;
    bring_down(device, whole ? 0 : port, what, receiver);
  }
}

// Port 0: all of them.
void RdmaTransport::bring_down(const RdmaDevice& device, int port, const std::string& why,
                               Receiver& receiver) {
  std::vector<RdmaLink*> hit;
  links_.each([&](RdmaLink& link) {
    const bool same = port == 0 || link.port().port == port;
    if (&link.device() == &device && same) hit.push_back(&link);
  });
  for (RdmaLink* link : hit) {
    if (link->state.closed) continue;
    link->state.broke("RDMA device " + device.name() + ": " + why);
    if (link->up) end(*link, receiver);
  }
}

}  // namespace tent
