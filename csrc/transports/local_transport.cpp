// Stage: transport. See local_transport.h.
#include "transports/local_transport.h"

#include <sys/epoll.h>

#include <bit>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace tent {
namespace {

constexpr int kEventsMax = 16;
// While the engine is polled without pause, sockets are looked at this seldom: a system call each
// time would cost more than the rings do, and the peer's end may be noticed a few µs later.
constexpr std::uint32_t kPollsPerLook = 64;
constexpr std::uint64_t kProcessBit = std::uint64_t(1) << 32;  // the event is of the pidfd

}  // namespace

bool LocalLink::take_parcels() {
  Parcel parcel;
  while (state.live()) {
    switch (socket.receive(parcel)) {
      case PeerSocket::Got::Nothing:
        return true;
      case PeerSocket::Got::Ended:
        ended = true;
        return false;
      case PeerSocket::Got::Malformed:
        return state.broke("malformed message on the peer's Unix socket; the link was closed");
      case PeerSocket::Got::Parcel:
        break;
    }
    if (parcel.label.kind != ParcelKind::Doorbell) {
      if (!take_parcel(parcel)) return state.broke("unexpected message on the peer's Unix socket");
      continue;
    }
    if (bell) return state.broke("the peer sent a second doorbell");
    const Status status = PeerDoorbell::open(std::move(parcel.fds[0]), std::move(parcel.fds[1]),
                                             parcel.label.id, bell);
    if (!status.ok()) return state.broke(status.text);
    bell.ring();  // for what was written before it could be rung
  }
  return false;
}

bool LocalLink::send_parcel(const ParcelLabel& label, int first_fd, int second_fd) {
  if (!socket.send(label, first_fd, second_fd)) {
    return state.broke(errno_text("no descriptor left for the peer"));
  }
  return flush_parcels();
}

bool LocalLink::flush_parcels() {
  const PeerSocket::Sent sent = socket.flush();
  parcels_wait = sent == PeerSocket::Sent::Waits;
  if (sent == PeerSocket::Sent::Failed) state.broke(errno_text("the peer's Unix socket failed"));
  return sent == PeerSocket::Sent::All;
}

LocalTransport::LocalTransport(int wait_set, Doorbell& doorbell, std::uint64_t poll_bytes)
    : doorbell_(doorbell), poll_bytes_(poll_bytes), ready_(::epoll_create1(EPOLL_CLOEXEC)) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = ready_.get();
  if (!ready_ || ::epoll_ctl(wait_set, EPOLL_CTL_ADD, ready_.get(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "same-host transport: epoll");
  }
}

LocalTransport::~LocalTransport() { drop_all(); }

void LocalTransport::drop_all() {
  // The engine ends, and has said so: what was named stays good, so that this is heard behind it.
  std::vector<LocalLink*> links;
  links_.each([&links](LocalLink& link) { links.push_back(&link); });
  for (LocalLink* link : links) drop(*link);
}

Status LocalTransport::connect(const Connection& connection) {
  std::vector<Descriptor> owned;
  for (const int fd : connection.fds) owned.emplace_back(fd);
  if (owned.size() != 2) {
    return failed("a same-host link needs two descriptors, its channel and its Unix socket");
  }
  if (links_.find(connection.link) != nullptr) return failed("the link number is in use");
  auto link = make_link();
  link->state.id = connection.link;
  Status status = link->channel.open(owned[0].get(), connection.dialed);
  if (status.ok()) status = link->socket.open(std::move(owned[1]), connection.pid);
  if (status.ok()) status = accepts(link->socket);
  if (!status.ok()) return status;
  link->slot = doorbell_.take_slot();
  if (link->slot < 0) return failed("this process has 1024 same-host links already");
  LocalLink& kept = links_.insert(connection.link, std::move(link));
  const auto slot = std::size_t(kept.slot);
  by_slot_[slot] = &kept;
  mine_[slot / 64] |= std::uint64_t(1) << (slot % 64);
  status = watch(kept);
  ParcelLabel hello;
  hello.kind = ParcelKind::Doorbell;
  hello.id = slot;
  if (status.ok() && !kept.send_parcel(hello, doorbell_.page_fd(), doorbell_.event_fd())) {
    status = kept.state.fault;  // Ok when it only waits
  }
  if (!status.ok()) {
    close(connection.link);
    return status;
  }
  greet(kept);
  settle(kept, true);
  return {};
}

Status LocalTransport::watch(LocalLink& link) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = std::uint64_t(link.slot);
  if (::epoll_ctl(ready_.get(), EPOLL_CTL_ADD, link.socket.fd(), &event) != 0) {
    return failed(errno_text("the Unix socket cannot be waited for"));
  }
  event.events = EPOLLIN;
  event.data.u64 |= kProcessBit;
  if (link.socket.pidfd() >= 0 &&
      ::epoll_ctl(ready_.get(), EPOLL_CTL_ADD, link.socket.pidfd(), &event) != 0) {
    return failed(errno_text("the peer's process cannot be waited for"));
  }
  return {};
}

void LocalTransport::post(LinkId id, Frame frame) {
  LocalLink* link = links_.find(id);
  if (link != nullptr) link->writer.push(std::move(frame));
}

void LocalTransport::send(LinkId id, Receiver& receiver) {
  LocalLink* link = links_.find(id);
  if (link == nullptr) return;
  LinkTable<LocalLink>::Hold hold(links_);
  bool moved = false;
  const bool more = link->writer.send(receiver, poll_bytes_, moved);
  if (!link->state.closed) settle(*link, more);
}

bool LocalTransport::poll(Receiver& receiver) {
  if (links_.empty()) return false;
  LinkTable<LocalLink>::Hold hold(links_);
  bool moved = false;
  const std::uint32_t wakes = doorbell_.wakes();
  if (wakes != wakes_seen_ || ++polls_ % kPollsPerLook == 0) {
    wakes_seen_ = wakes;
    moved = look_at_sockets(receiver);
  }
  Doorbell::Slots ready;
  if (!doorbell_.take_ready(mine_, ready)) return moved;
  for (std::size_t w = 0; w < ready.size(); ++w) {
    for (std::uint64_t bits = ready[w]; bits != 0; bits &= bits - 1) {
      LocalLink* link = by_slot_[w * 64 + std::size_t(std::countr_zero(bits))];
      if (link != nullptr) moved |= serve(*link, receiver);
    }
  }
  return moved;
}

bool LocalTransport::serve(LocalLink& link, Receiver& receiver) {
  bool moved = false;
  const bool was_behind = std::exchange(link.behind, false);
  bool more = link.behind = link.reader.receive(receiver, poll_bytes_, moved);
  moved |= was_behind && !link.behind;  // acknowledgements that waited for company are due
  if (link.state.live()) more |= link.advance(receiver, moved);
  if (link.state.live()) more |= link.writer.send(receiver, poll_bytes_, moved);
  if (link.state.closed) return true;
  if (!link.state.fault.ok()) {
    end(link, receiver);
    return true;
  }
  settle(link, more);
  return moved;
}

void LocalTransport::settle(LocalLink& link, bool more) {
  // A fault, too, is reported by poll(), never in the middle of what the caller is doing.
  if (!link.state.fault.ok()) more = true;
  if (!more && !link.writer.empty()) more = !link.channel.wait_for_room();
  if (link.channel.take_news() && link.bell) link.bell.ring();
  if (link.parcels_wait != link.waits_for_room) watch_room(link);
  if (more) doorbell_.again(link.slot);
}

// Asks to be told of room in the Unix socket exactly while parcels wait for it.
void LocalTransport::watch_room(LocalLink& link) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP | (link.parcels_wait ? std::uint32_t(EPOLLOUT) : 0u);
  event.data.u64 = std::uint64_t(link.slot);
  if (::epoll_ctl(ready_.get(), EPOLL_CTL_MOD, link.socket.fd(), &event) != 0) {
    link.state.broke(errno_text("the Unix socket cannot be waited for"));
    doorbell_.again(link.slot);
    return;
  }
  link.waits_for_room = link.parcels_wait;
}

bool LocalTransport::look_at_sockets(Receiver& receiver) {
  epoll_event events[kEventsMax];
  const int count = ::epoll_wait(ready_.get(), events, kEventsMax, 0);
  for (int i = 0; i < count; ++i) {
    const std::uint64_t about = events[i].data.u64;
    LocalLink* link = by_slot_[std::size_t(about & ~kProcessBit)];
    if (link != nullptr) look_at(*link, events[i].events, (about & kProcessBit) != 0, receiver);
  }
  return count > 0;
}

void LocalTransport::look_at(LocalLink& link, std::uint32_t events, bool process,
                             Receiver& receiver) {
  if (process) {
    link.ended = true;
  } else {
    link.take_parcels();
    if ((events & EPOLLOUT) != 0 && link.state.live()) link.flush_parcels();
  }
  if (!link.ended && link.state.live()) {
    settle(link, true);
    return;
  }
  // What the peer said before its end is still heard.
  bool moved = false;
  link.reader.receive(receiver, poll_bytes_, moved);
  if (!link.state.closed) end(link, receiver);
}

void LocalTransport::end(LocalLink& link, Receiver& receiver) {
  Status why = link.state.fault;
  const std::string peer = "peer process " + std::to_string(link.socket.pid());
  if (link.socket.ending()) {
    why = Status{Code::PeerLost, peer + " ended", {}};
  } else if (link.ended) {
    why = failed(peer + " closed the connection");
  }
  const LinkId id = link.state.id;
  close(id);
  receiver.down(id, why);
}

void LocalTransport::close(LinkId id) {
  LocalLink* link = links_.find(id);
  if (link == nullptr) return;
  const LocalChannel::Withdrawal withdrawal = link->channel.withdraw();
  if (withdrawal.fetching()) parting_.emplace(id, withdrawal);
  drop(*link);
}

bool LocalTransport::behind(LinkId id) const {
  const LocalLink* link = links_.find(id);
  return link != nullptr && link->behind;
}

std::function<bool()> LocalTransport::peer_copies(LinkId id) {
  const auto found = parting_.extract(id);
  if (!found) return {};
  return [withdrawal = found.mapped()] { return withdrawal.fetching(); };
}

void LocalTransport::drop(LocalLink& link) {
  link.state.closed = true;
  link.stop();
  // Not left to the closing: a forked child may hold copies, and the kernel would go on reporting.
  static_cast<void>(::epoll_ctl(ready_.get(), EPOLL_CTL_DEL, link.socket.fd(), nullptr));
  if (link.socket.pidfd() >= 0) {
    static_cast<void>(::epoll_ctl(ready_.get(), EPOLL_CTL_DEL, link.socket.pidfd(), nullptr));
  }
  link.socket.shut();
  const auto slot = std::size_t(link.slot);
  by_slot_[slot] = nullptr;
  mine_[slot / 64] &= ~(std::uint64_t(1) << (slot % 64));
  doorbell_.free_slot(link.slot);
  links_.drop(link.state.id);
}

}  // namespace tent
