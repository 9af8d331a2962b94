// Stage: transport. See peer_socket.h.
#include "transports/peer_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace tent {
namespace {

constexpr std::size_t kFdsMax = 2;
constexpr unsigned long kProcessExiting = 4;  // PF_EXITING in the kernel's sched.h

union FdSpace {  // aligned as the kernel's messages are
  cmsghdr header;
  char bytes[CMSG_SPACE(kFdsMax * sizeof(int))];
};

bool is_unix_stream(int fd) {
  sockaddr_storage name{};
  socklen_t bytes = sizeof name;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &bytes) != 0) return false;
  int type = 0;
  bytes = sizeof type;
  return name.ss_family == AF_UNIX && ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) == 0 &&
         type == SOCK_STREAM;
}

Descriptor open_pidfd(int socket, std::int32_t pid) {
  int fd = -1;
  socklen_t bytes = sizeof fd;
  // The socket's own word cannot mean another process that took over the number.
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &bytes) == 0) return Descriptor(fd);
  return pid > 0 ? Descriptor(int(::syscall(SYS_pidfd_open, pid, 0))) : Descriptor();
}

// Takes the descriptors out of a received message; those beyond kFdsMax the kernel has closed.
std::size_t take_fds(msghdr& message, Parcel& parcel, std::size_t taken) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      Descriptor owned(fd);
      if (taken < kFdsMax) parcel.fds[taken++] = std::move(owned);
    }
  }
  return taken;
}

std::size_t fds_due(ParcelKind kind) {
  switch (kind) {
    case ParcelKind::Doorbell:
      return 2;
    case ParcelKind::Region:
    case ParcelKind::Staging:
      return 1;
    case ParcelKind::Forget:
    case ParcelKind::Reads:
      return 0;
  }
  return kFdsMax + 1;  // no such kind
}

}  // namespace

Status PeerSocket::open(Descriptor socket, std::int32_t claimed_pid) {
  if (!is_unix_stream(socket.get())) {
    return failed("a same-host link's last descriptor must be its connected Unix socket");
  }
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return failed(errno_text("the Unix socket cannot be made non-blocking"));
  }
  ucred peer{};
  socklen_t bytes = sizeof peer;
  const bool known =
      ::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.pid > 0;
  pid_ = known ? peer.pid : claimed_pid;
  pidfd_ = open_pidfd(socket.get(), pid_);
  socket_ = std::move(socket);
  return {};
}

bool PeerSocket::alive() const {
  pollfd process{pidfd_.get(), POLLIN, 0};
  return pidfd_ && ::poll(&process, 1, 0) == 0;
}

// Sockets close before the pidfd tells, and memory that is freed in between may take a second.
bool PeerSocket::ending() const {
  if (!pidfd_) return false;
  if (!alive()) return true;
  std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
  std::string line;
  std::getline(file, line);
  const std::size_t name_end = line.rfind(')');  // the name may hold anything but its end is clear
  if (name_end == std::string::npos) return false;
  std::istringstream fields(line.substr(name_end + 1));
  std::string state, skipped;
  unsigned long flags = 0;
  fields >> state;
  for (int i = 0; i < 5; ++i) fields >> skipped;  // ppid, pgrp, session, tty_nr, tpgid
  fields >> flags;
  return (flags & kProcessExiting) != 0;
}

bool PeerSocket::send(const ParcelLabel& label, int first_fd, int second_fd) {
  Parcel parcel;
  parcel.label = label;
  const int fds[kFdsMax] = {first_fd, second_fd};
  for (std::size_t i = 0; i < kFdsMax; ++i) {
    if (fds[i] < 0) continue;
    parcel.fds[i].reset(::fcntl(fds[i], F_DUPFD_CLOEXEC, 0));
    if (!parcel.fds[i]) return false;
  }
  leaving_.push_back(std::move(parcel));
  return true;
}

PeerSocket::Sent PeerSocket::flush() {
  while (!leaving_.empty()) {
    Parcel& parcel = leaving_.front();
    iovec rest{reinterpret_cast<char*>(&parcel.label) + label_sent_,
               sizeof parcel.label - label_sent_};
    msghdr message{};
    message.msg_iov = &rest;
    message.msg_iovlen = 1;
    FdSpace space{};
    if (label_sent_ == 0 && parcel.fds[0]) {  // descriptors travel with the first byte
      const std::size_t count = parcel.fds[1] ? 2 : 1;
      message.msg_control = space.bytes;
      message.msg_controllen = CMSG_SPACE(count * sizeof(int));
      cmsghdr* part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(count * sizeof(int));
      const int fds[kFdsMax] = {parcel.fds[0].get(), parcel.fds[1].get()};
      std::memcpy(CMSG_DATA(part), fds, count * sizeof(int));
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      // An ended connection is noticed where the socket is read, with what came before its end.
      const bool waits = errno == EAGAIN || errno == EINTR || errno == EPIPE || errno == ECONNRESET;
      return waits ? Sent::Waits : Sent::Failed;
    }
    label_sent_ += std::size_t(sent);
    if (label_sent_ < sizeof parcel.label) continue;
    label_sent_ = 0;
    leaving_.pop_front();
  }
  return Sent::All;
}

void PeerSocket::shut() {
  if (!socket_) return;
  ::shutdown(socket_.get(), SHUT_RDWR);
  socket_.reset();
  pidfd_.reset();
  leaving_.clear();
}

PeerSocket::Got PeerSocket::receive(Parcel& out) {
  // Never more than the rest of one parcel, so that descriptors stay with their labels.
  while (label_taken_ < sizeof(ParcelLabel)) {
    iovec rest{reinterpret_cast<char*>(&arriving_.label) + label_taken_,
               sizeof(ParcelLabel) - label_taken_};
    FdSpace space{};
    msghdr message{};
    message.msg_iov = &rest;
    message.msg_iovlen = 1;
    message.msg_control = space.bytes;
    message.msg_controllen = sizeof space.bytes;
    const ssize_t got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
      return Got::Nothing;
    }
    if (got <= 0) return Got::Ended;
    fds_taken_ = take_fds(message, arriving_, fds_taken_);
    label_taken_ += std::size_t(got);
  }
  const bool good =
      arriving_.label.magic == ParcelLabel{}.magic && fds_taken_ == fds_due(arriving_.label.kind);
  out = std::move(arriving_);
  arriving_ = Parcel();
  label_taken_ = fds_taken_ = 0;
  return good ? Got::Parcel : Got::Malformed;
}

}  // namespace tent
