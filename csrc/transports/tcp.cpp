// Stage: transport. See tcp.h.
#include "transports/tcp.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <memory>
#include <system_error>
#include <utility>

#include "transports/inline_slices.h"

namespace tent {
namespace {

constexpr int kEventsMax = 64;
// What the kernel may hold of a link beyond what is on the wire. Bytes in there can no longer be
// taken back or go another way, so a slow rail must not hoard megabytes; 256 KiB keep a 10 Gbit/s
// rail busy for 200 us, longer than it takes to be polled again.
constexpr int kUnsentBytesMax = 256 << 10;

class TcpStream final : public ByteStream {
 public:
  TcpStream(LinkState& link, int socket) : link_(link), socket_(socket) {}

  std::ptrdiff_t write_some(const iovec* parts, int count) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts);
    message.msg_iovlen = std::size_t(count);
    const ssize_t sent = ::sendmsg(socket_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent >= 0 ? sent : failed_call("sending failed");
  }

  std::ptrdiff_t read_some(const iovec* parts, int count) override {
    const ssize_t got = ::readv(socket_, parts, count);
    if (got > 0) return got;
    if (got < 0) return failed_call("receiving failed");
    link_.broke("the peer closed the connection");
    return -1;
  }

 private:
  std::ptrdiff_t failed_call(const char* what) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;
    link_.broke(errno_text(what));
    return -1;
  }

  LinkState& link_;
  int socket_;
};

void set_option(int socket, int level, int name, int value) {
  // An option that this kernel does not have costs speed, not correctness.
  static_cast<void>(::setsockopt(socket, level, name, &value, sizeof value));
}

// "" when this is a connected TCP socket.
std::string unsuitable(int socket) {
  sockaddr_storage peer{};
  socklen_t bytes = sizeof peer;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &bytes) != 0) {
    return errno_text("not a connected socket");
  }
  int type = 0;
  bytes = sizeof type;
  ::getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &bytes);
  const bool internet = peer.ss_family == AF_INET || peer.ss_family == AF_INET6;
  return internet && type == SOCK_STREAM ? "" : "not a TCP socket";
}

}  // namespace

struct TcpLink {
  TcpLink(LinkId id, int fd)
      : socket(fd),
        stream(state, fd),
        slices_in(state),
        slices_out(state),
        reader(state, stream, slices_in),
        writer(state, stream, slices_out) {
    state.id = id;
  }

  // The connection ends at once, with a reset, and what the kernel has not sent dies with it: by
  // dissolving the association, since closing waits for copies of the descriptor in forked
  // children.
  void shut() {
    if (!socket) return;
    const linger at_once{1, 0};
    ::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    sockaddr nobody{};
    nobody.sa_family = AF_UNSPEC;
    static_cast<void>(::connect(socket.get(), &nobody, sizeof nobody));
    socket.reset();
  }

  LinkState state;
  Descriptor socket;
  TcpStream stream;
  InlineSliceReader slices_in;
  InlineSliceWriter slices_out;
  FrameReader reader;
  FrameWriter writer;
  bool waits_for_room = false;  // EPOLLOUT is asked for
};

TcpTransport::TcpTransport(int wait_set, std::uint64_t poll_bytes)
    : poll_bytes_(poll_bytes), ready_(::epoll_create1(EPOLL_CLOEXEC)) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = ready_.get();
  if (!ready_ || ::epoll_ctl(wait_set, EPOLL_CTL_ADD, ready_.get(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "TCP transport: epoll");
  }
}

TcpTransport::~TcpTransport() {
  links_.each([](TcpLink& link) { link.shut(); });
}

Reach TcpTransport::reach(LinkId link, const Pieces&) const {
  return links_.find(link) != nullptr ? Reach::Direct : Reach::No;
}

Status TcpTransport::register_region(const Region&) { return {}; }

Status TcpTransport::connect(const Connection& connection) {
  std::vector<Descriptor> owned;
  for (const int fd : connection.fds) owned.emplace_back(fd);
  if (owned.size() != 1) return failed("a TCP link needs one descriptor, a connected socket");
  if (links_.find(connection.link) != nullptr) return failed("the link number is in use");
  const int fd = owned[0].get();
  if (const std::string why = unsuitable(fd); !why.empty()) return failed(why);
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return failed(errno_text("the socket cannot be made non-blocking"));
  }
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, kUnsentBytesMax);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = connection.link;
  if (::epoll_ctl(ready_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return failed(errno_text("the socket cannot be waited for"));
  }
  links_.insert(connection.link, std::make_unique<TcpLink>(connection.link, owned[0].release()));
  return {};
}

void TcpTransport::post(LinkId id, Frame frame) {
  TcpLink* link = links_.find(id);
  if (link != nullptr) link->writer.push(std::move(frame));
}

void TcpTransport::send(LinkId id, Receiver& receiver) {
  TcpLink* link = links_.find(id);
  // When the socket is full or broken, it is poll() that goes on: a link is reported down there,
  // never in the middle of what its caller is doing.
  if (link == nullptr || link->waits_for_room || !link->state.live()) return;
  LinkTable<TcpLink>::Hold hold(links_);
  bool moved = false;
  while (link->writer.send(receiver, poll_bytes_, moved)) {
  }
  if (!link->state.closed) watch_room(*link);
}

bool TcpTransport::poll(Receiver& receiver) {
  if (links_.empty()) return false;
  LinkTable<TcpLink>::Hold hold(links_);
  epoll_event events[kEventsMax];
  const int count = ::epoll_wait(ready_.get(), events, kEventsMax, 0);
  bool moved = false;
  for (const LinkId id : std::exchange(later_, {})) {
    TcpLink* link = links_.find(id);
    if (link != nullptr && link->state.later) moved |= serve(*link, EPOLLIN, receiver);
  }
  for (int i = 0; i < count; ++i) {
    // By number: a Receiver call for an earlier event may have closed this link.
    if (TcpLink* link = links_.find(events[i].data.u64)) {
      moved |= serve(*link, events[i].events, receiver);
    }
  }
  return moved;
}

bool TcpTransport::serve(TcpLink& link, std::uint32_t events, Receiver& receiver) {
  bool moved = false;
  // What has come before the end is still heard; reading also tells why the connection ended.
  if ((events & ~std::uint32_t(EPOLLOUT)) != 0 &&
      link.reader.receive(receiver, poll_bytes_, moved)) {
    link.reader.catch_up(receiver);
  }
  if (link.state.live() && (events & EPOLLOUT) != 0) {
    link.writer.send(receiver, poll_bytes_, moved);
  }
  if (link.state.closed) return true;
  if (link.state.live()) {
    watch_room(link);
    if (link.state.later) later_.push_back(link.state.id);
    return moved;
  }
  const Status why = link.state.fault;
  const LinkId id = link.state.id;
  close(id);
  receiver.down(id, why);
  return true;
}

// Asks to be told of room in the socket exactly while frames wait for it.
void TcpTransport::watch_room(TcpLink& link) {
  const bool waits = !link.writer.empty();
  if (waits == link.waits_for_room) return;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP | (waits ? std::uint32_t(EPOLLOUT) : 0u);
  event.data.u64 = link.state.id;
  if (::epoll_ctl(ready_.get(), EPOLL_CTL_MOD, link.socket.get(), &event) != 0) {
    link.state.broke(errno_text("the socket cannot be waited for"));
    ::shutdown(link.socket.get(), SHUT_RDWR);  // so that poll() comes across it
    return;
  }
  link.waits_for_room = waits;
}

void TcpTransport::close(LinkId id) {
  TcpLink* link = links_.find(id);
  if (link == nullptr) return;
  link->state.closed = true;
  static_cast<void>(::epoll_ctl(ready_.get(), EPOLL_CTL_DEL, link->socket.get(), nullptr));
  link->shut();
  links_.drop(id);
}

}  // namespace tent
