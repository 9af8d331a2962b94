// Stage: device. See alarm.h.
#include "device/alarm.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace tent {

Alarm::Alarm(int wait_set) : fd_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd_;
  if (fd_ < 0 || ::epoll_ctl(wait_set, EPOLL_CTL_ADD, fd_, &event) != 0) {
    const int why = errno;
    if (fd_ >= 0) ::close(fd_);
    throw std::system_error(why, std::generic_category(), "the timer for copies of GPUs");
  }
}

Alarm::~Alarm() { ::close(fd_); }

void Alarm::every(TimeNs period) {
  if (period == period_) return;
  period_ = period;
  itimerspec times{};
  times.it_value = times.it_interval = {.tv_sec = 0, .tv_nsec = long(period)};
  ::timerfd_settime(fd_, 0, &times, nullptr);
}

void Alarm::hush() {
  if (period_ == 0) return;
  std::uint64_t times = 0;
  static_cast<void>(!::read(fd_, &times, sizeof times));  // nothing to read is fine
}

}  // namespace tent
