// Stage: engine. See progress.h.
#include "engine/progress.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "engine/clock.h"
#include "engine/held.h"
#include "engine/processors.h"

namespace tent {
namespace {

constexpr TimeNs kSpin = 10 * kMicrosecond;  // polls on after the last movement, if that keeps
                                             // nobody from running
constexpr TimeNs kLate = 5 * kMillisecond;   // how late the Node may be called after a long idle
constexpr TimeNs kSleepBusy =
    10 * kMillisecond;                 // longest sleep while something was going on lately
constexpr TimeNs kBusy = 1 * kSecond;  // ... which is this
constexpr TimeNs kSleepIdle = 1 * kSecond;
constexpr int kArmRounds = 4;

}  // namespace

Progress::Progress(int wait_set, Lock& lock, Exchange& exchange, Notifier& notifier, Wheel& wheel)
    : wait_set_(wait_set),
      kick_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      lock_(lock),
      exchange_(exchange),
      notifier_(notifier),
      wheel_(wheel) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = kick_fd_;
  if (kick_fd_ < 0 || epoll_ctl(wait_set_, EPOLL_CTL_ADD, kick_fd_, &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "the engine's event descriptor");
  }
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "tent-progress");
}

Progress::~Progress() {
  stop();
  ::close(kick_fd_);
}

void Progress::stop() {
  lock_.lock();
  stopping_ = true;
  kick();
  lock_.unlock();
  if (thread_.joinable()) thread_.join();
}

void Progress::silence() {
  if (!audible_) return;
  exchange_.doorbell.woke();
  audible_ = false;
}

void Progress::take_over(bool at_once) {
  if (!asleep_) {
    if (at_once) kick();
    return;
  }
  for (int round = 0; !may_sleep(); ++round) {
    if (round == kArmRounds) return kick();
    exchange_.poll(now_ns());
  }
  audible_ = true;
  mind();
}

void Progress::mind() {
  // This way round: due() may be kNever, to which nothing can be added.
  if (audible_ && exchange_.due() < wakes_at_ - kLate) kick();
}

void Progress::kick() {
  kicks_.fetch_add(1);
  if (asleep_) {
    wakes_at_ = 0;
    eventfd_write(kick_fd_, 1);
  } else {
    futex_wake(kicks_);
  }
}

void Progress::run() {
  const TimeNs spin = one_processor() ? 0 : kSpin;
  TimeNs moved_at = 0;
  for (;;) {
    const std::uint32_t kicks = kicks_.load();
    if (stopping_) return;
    const TimeNs now = now_ns();
    if (wheel_.in_use(now)) {
      rests_.fetch_add(1, std::memory_order_relaxed);
      futex_wait(kicks_, kicks, now + Wheel::kRest);
      continue;
    }
    TimeNs until = 0;
    {
      Held held(lock_, exchange_, notifier_);
      if (held->poll(now)) {
        moved_at = now_ns();
      } else if (now - moved_at > spin && fall_asleep(now)) {
        until = wakes_at_;
      }
    }
    if (until != 0) {
      sleep(until);
      wake_up();
    }
    lock_.step_back();
  }
}

// Whoever has work for us will wake us up. False: there is some already.
bool Progress::may_sleep() {
  return exchange_.rdma.prepare_sleep() && exchange_.doorbell.prepare_sleep();
}

bool Progress::fall_asleep(TimeNs now) {
  if (stopping_ || !may_sleep()) return false;
  const TimeNs longest = now - exchange_.busy_at() < kBusy ? kSleepBusy : kSleepIdle;
  wakes_at_ = std::min(exchange_.due(), now + longest);
  asleep_ = audible_ = true;
  return true;
}

void Progress::sleep(TimeNs until) {
  sleeps_.fetch_add(1, std::memory_order_relaxed);
  const TimeNs left = std::max<TimeNs>(until - now_ns(), 0);
  const timespec timeout{.tv_sec = left / kSecond, .tv_nsec = left % kSecond};
  epoll_event event{};
  if (epoll_pwait2(wait_set_, &event, 1, &timeout, nullptr) < 0 && errno == ENOSYS) {
    epoll_wait(wait_set_, &event, 1, int((left + kMillisecond - 1) / kMillisecond));
  }
}

void Progress::wake_up() {
  eventfd_t ignored;
  const std::lock_guard lock(lock_);
  eventfd_read(kick_fd_, &ignored);
  silence();
  asleep_ = false;
}

}  // namespace tent
