// Stage: engine. How a thread waits: it takes the wheel and polls for itself as long as anything
// moves, gives up spinning soon after, and sleeps: the first who does so in the engine's epoll set,
// in the place of the progress thread, others until they are served.
// Called without any lock. While it drives, no other thread spins.
#include <sched.h>

#include <mutex>
#include <stdexcept>

#include "engine/clock.h"
#include "engine/engine.h"

namespace tent {
namespace {

constexpr TimeNs kSpin = 80 * kMicrosecond;    // polls on after the last movement
constexpr TimeNs kStuffed = 5 * kMicrosecond;  // the same while a socket is full: it drains alone
constexpr TimeNs kAlone = 2 * kMicrosecond;  // ... and from here on lets others have the processor
constexpr int kYieldRounds = 4;

}  // namespace

bool Engine::wait(Operation& operation, TimeNs until) {
  if (!operation.ready()) {
    if (forked()) check();
    if (!wait_ready(operation, until, operation.urgent)) return false;
  }
  operation.waited_for.store(true, std::memory_order_relaxed);
  return true;
}

bool Engine::wait_notification(SegmentId segment, TimeNs until) {
  for (;;) {
    std::shared_ptr<Waitable> bell;
    {
      Held held = hold();
      const Segment* found = held->node().segments().find(segment);
      if (!found) throw std::runtime_error("the segment is closed: nothing will be notified in it");
      if (!found->notes.empty()) return true;
      bell = held->bells.of(segment);
    }
    if (!wait_ready(*bell, until, true)) return false;
  }
}

void Engine::close_segment(SegmentId segment) {
  {
    Held held = hold();
    held->node().close_segment(segment, now_ns());
    held->bells.ring(segment, held->operations.aftermath());
  }
  await_readers(segment);
  hold()->rdma.memory.drop({MemoryOwner::Kind::Segment, segment});
}

std::uint32_t Engine::revoke(SegmentId segment, const std::vector<std::int64_t>& blocks) {
  std::uint32_t epoch = 0;
  {
    Held held = hold();
    held->node().revoke(segment, blocks, now_ns());
    const Segment* found = held->node().segments().find(segment);
    if (!found) throw std::invalid_argument("the segment is closed: nobody can reach its blocks");
    epoch = found->epoch;
  }
  await_readers(segment);
  return epoch;
}

// The Node ends this by itself: readers that do not answer are cut off.
void Engine::await_readers(SegmentId segment) {
  for (;;) {
    {
      Held held = hold();
      held->poll(now_ns());
      if (!held->node().busy(segment)) return;
    }
    sched_yield();
  }
}

bool Engine::wait_ready(Waitable& what, TimeNs until, bool urgent) {
  TimeNs spin = kSpin;
  while (!what.ready()) {
    const Wheel::Turn turn = wheel_.take(urgent);
    const Drove drove = turn == 0 ? Drove::Lost : drive(turn, what, until, spin);
    if (drove == Drove::Listens) {
      listen(what);
      spin = 0;  // it was not for this that it was woken, unless something moves now
      continue;
    }
    if (what.ready()) break;
    if (now_ns() >= until) return false;
    wheel_.sleep(what, until, drove == Drove::Lost);
    spin = kSpin;
  }
  return true;
}

// Sleeps in the engine's epoll set, for the progress thread too.
void Engine::listen(Waitable& what) {
  wheel_.sleep_listening(what, progress_.bell(), [this] { progress_.doze(); });
  const std::lock_guard lock(lock_);
  progress_.hear();
  // Another thread has served it, and nobody listens any more.
  if (what.ready()) progress_.take_over(true);
}

Engine::Drove Engine::drive(Wheel::Turn turn, Waitable& what, TimeNs until, TimeNs spin) {
  TimeNs now = now_ns(), moved_at = now - kSpin + spin;
  bool ended = false, quiet = false, listens = false;
  for (int round = 0; !ended && !quiet && wheel_.holds(turn); ++round) {
    // What this waits for may end under another thread's lock; the bells need ours even then.
    const bool locked = lock_.try_lock();
    if (locked || what.ready()) {
      if (!locked) lock_.lock();
      Held held(lock_, exchange_, notifier_, std::adopt_lock);
      progress_.silence();
      if (held->poll(now)) moved_at = now_ns();
      now = now_ns();
      ended = what.ready() || now >= until;
      const TimeNs patience = held->stuffed() ? kStuffed : kSpin;
      quiet = !ended && now - moved_at > patience;
      if (quiet && !progress_.has_listener()) quiet = listens = progress_.listen(now, until);
      if (ended || (quiet && !listens)) progress_.take_over(quiet);
    } else {
      now = now_ns();
    }
    lock_.step_back();
    if (now - moved_at > kAlone && round % kYieldRounds == 0) sched_yield();
    cpu_relax();
  }
  const bool kept = wheel_.holds(turn);
  wheel_.leave(turn, now, ended);
  if (listens) return Drove::Listens;
  return !kept ? Drove::Lost : ended ? Drove::Ended : Drove::GaveUp;
}

}  // namespace tent
