// Stage: engine. See progress.h.
#include "engine/progress.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <system_error>

#include "engine/clock.h"
#include "engine/held.h"
#include "engine/processors.h"

namespace tent {
namespace {

constexpr TimeNs kSpin = 10 * kMicrosecond;      // polls on after the last movement, if that keeps
                                                 // nobody from running
constexpr TimeNs kSpinMost = 50 * kMicrosecond;  // ... where a peer rings again sooner than that
constexpr TimeNs kLate = 5 * kMillisecond;  // how late the Node may be called after a long idle
constexpr TimeNs kSleepBusy =
    10 * kMillisecond;                 // longest sleep while something was going on lately
constexpr TimeNs kBusy = 1 * kSecond;  // ... which is this
constexpr TimeNs kSleepIdle = 1 * kSecond;
constexpr int kArmRounds = 4;
constexpr TimeNs kSoon = 1;  // asleep, but called already

}  // namespace

Progress::Progress(int wait_set, Lock& lock, Exchange& exchange, Notifier& notifier, Wheel& wheel)
    : wait_set_(wait_set),
      kick_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      alarm_fd_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)),
      lock_(lock),
      exchange_(exchange),
      notifier_(notifier),
      wheel_(wheel),
      spin_(one_processor() ? 0 : kSpin) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = kick_fd_.get();
  if (!kick_fd_ || !alarm_fd_ || epoll_ctl(wait_set_, EPOLL_CTL_ADD, kick_fd_.get(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "the engine's event descriptor");
  }
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "tent-progress");
}

Progress::~Progress() { stop(); }

void Progress::stop() {
  lock_.lock();
  stopping_ = true;
  kick();
  call_back(true);
  lock_.unlock();
  if (thread_.joinable()) thread_.join();
}

void Progress::silence() {
  if (!audible_) return;
  exchange_.woke();
  audible_ = false;
}

void Progress::take_over(bool at_once) {
  if (!anybody_asleep()) {
    if (retired_) {
      call_back(at_once);
    } else if (at_once) {
      kick();
    }
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
  if (!audible_) return;
  const TimeNs first = wakes_at_ == 0     ? watch_ends_
                       : watch_ends_ == 0 ? wakes_at_
                                          : std::min(wakes_at_, watch_ends_);
  // This way round: due() may be kNever, to which nothing can be added.
  if (exchange_.due() < first - kLate) kick();
}

void Progress::kick() {
  kicks_.fetch_add(1);
  if (anybody_asleep()) {
    if (wakes_at_ != 0) wakes_at_ = kSoon;
    if (watch_ends_ != 0) watch_ends_ = kSoon;
    eventfd_write(kick_fd_.get(), 1);
  } else {
    futex_wake(kicks_);
  }
}

void Progress::run() {
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
    Next next;
    {
      Held held(lock_, exchange_, notifier_);
      next = look(now);
      until = wakes_at_;
    }
    if (next == Next::Sleep) {
      sleeps_.fetch_add(1, std::memory_order_relaxed);
      const bool rang = sleep(until);
      wake_up();
      learn(rang, now_ns() - now);
    } else if (next == Next::Retire) {
      std::uint64_t ignored;
      [[maybe_unused]] const auto got = ::read(alarm_fd_.get(), &ignored, sizeof ignored);
    }
    lock_.step_back();
  }
}

// Under the engine lock.
Progress::Next Progress::look(TimeNs now) {
  retired_ = called_ = false;
  if (exchange_.poll(now)) {
    moved_at_ = now_ns();
    return Next::Poll;
  }
  if (now - moved_at_ <= spin_ || stopping_ || !may_sleep()) return Next::Poll;
  audible_ = true;
  if (watch_ends_ == 0) {
    wakes_at_ = bedtime(now);
    return Next::Sleep;
  }
  mind();
  retired_ = true;
  return Next::Retire;
}

// The retired thread: soon, since another wait is likely to follow, or now.
void Progress::call_back(bool at_once) {
  if (called_ && !at_once) return;
  called_ = true;
  itimerspec alarm{};
  alarm.it_value.tv_nsec = at_once ? 1 : Wheel::kRest;
  ::timerfd_settime(alarm_fd_.get(), 0, &alarm, nullptr);
}

// Whoever has work for us will wake us up. False: there is some already.
bool Progress::may_sleep() { return exchange_.prepare_sleep(); }

TimeNs Progress::bedtime(TimeNs now) const {
  const TimeNs longest = now - exchange_.busy_at() < kBusy ? kSleepBusy : kSleepIdle;
  return std::min(exchange_.due(), now + longest);
}

// As a hypervisor polls for a halted guest: a peer that rings again at once is worth spinning for,
// as to be woken costs both ends more; a long sleep shows that it was not.
void Progress::learn(bool rang, TimeNs slept) {
  if (one_processor()) return;
  spin_ = rang && slept < kSpinMost ? std::min(2 * spin_, kSpinMost) : kSpin;
}

// True: a peer on this host rang.
bool Progress::sleep(TimeNs until) {
  const TimeNs left = std::max<TimeNs>(until - now_ns(), 0);
  const timespec timeout{.tv_sec = left / kSecond, .tv_nsec = left % kSecond};
  epoll_event event{};
  int found = epoll_pwait2(wait_set_, &event, 1, &timeout, nullptr);
  if (found < 0 && errno == ENOSYS) {
    found = epoll_wait(wait_set_, &event, 1, int((left + kMillisecond - 1) / kMillisecond));
  }
  return found == 1 && event.data.fd == exchange_.doorbell.event_fd();
}

void Progress::wake_up() {
  eventfd_t ignored;
  const std::lock_guard lock(lock_);
  // A watcher reads it for itself: it may be meant for it, and it may not sleep yet.
  if (watch_ends_ == 0) eventfd_read(kick_fd_.get(), &ignored);
  silence();
  wakes_at_ = 0;
}

TimeNs Progress::begin_watch(Waitable& what, TimeNs now, TimeNs until) {
  if (stopping_ || watch_ends_ != 0 || !may_sleep()) return 0;
  what.begin_watch(kick_fd_.get());
  audible_ = true;
  return watch_ends_ = std::min(bedtime(now), until);
}

Wheel::Turn Progress::keep_watch(Waitable& what, TimeNs ends, bool urgent) {
  watches_.fetch_add(1, std::memory_order_relaxed);
  sleep(ends);
  eventfd_t ignored;
  Held held(lock_, exchange_, notifier_);
  if (!stopping_) eventfd_read(kick_fd_.get(), &ignored);  // else the thread must see it, too
  watch_ends_ = 0;
  what.end_watch();
  // Under the lock: who takes the wheel after this one looked hands over after it, too.
  const Wheel::Turn turn = what.ready() ? 0 : wheel_.take(urgent);
  if (turn != 0) {
    silence();
  } else {
    take_over(true);
  }
  return turn;
}

}  // namespace tent
