// Stage: engine. How a thread waits: it takes the wheel and polls for itself as long as anything
// moves, gives up spinning soon after, and sleeps while the progress thread serves it.
// Called without any lock. While it drives, no other thread spins.
#include <sched.h>

#include <mutex>
#include <stdexcept>

#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/processors.h"

namespace tent {
namespace {

constexpr TimeNs kSpin = 80 * kMicrosecond;         // polls on after the last movement
constexpr TimeNs kSpinAgain = 10 * kMicrosecond;    // ... where it has slept in this wait before
constexpr TimeNs kSpinCrowded = 15 * kMicrosecond;  // ... where a yield would cost the processor
constexpr TimeNs kAlone = 2 * kMicrosecond;  // ... and from here on lets others have the processor
constexpr int kYieldRounds = 4;

}  // namespace

bool Engine::wait(Operation& operation, TimeNs until) {
  if (!operation.ready()) {
    if (forked()) check();
    if (!wait_ready(operation, until, operation.urgent)) return false;
  } else if (one_processor()) {
    wheel_.passed(now_ns());  // else the progress thread is woken up each time
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
      if (!held->node().busy(segment) && !held->copying(segment)) return;
    }
    sched_yield();
  }
}

bool Engine::wait_ready(Waitable& what, TimeNs until, bool urgent) {
  TimeNs spin = kSpin;
  Wheel::Turn turn = 0;
  while (turn != 0 || !what.ready()) {
    if (turn == 0) turn = wheel_.take(urgent);
    const Drive drove = turn != 0 ? drive(turn, what, until, spin) : Drive{};
    turn = 0;
    if (drove.watch != 0) {
      turn = progress_.keep_watch(what, drove.watch, urgent);
      spin = kSpinAgain;
    } else if (what.ready()) {
      break;
    } else if (now_ns() >= until) {
      return false;
    } else {
      wheel_.sleep(what, until, !drove.gave_up);
    }
  }
  return true;
}

Engine::Drive Engine::drive(Wheel::Turn turn, Waitable& what, TimeNs until, TimeNs spin) {
  const TimeNs alone = one_processor() ? 0 : kAlone;
  const int yield_rounds = one_processor() ? 1 : kYieldRounds;
  const TimeNs crowded = one_processor() ? 0 : kSpinCrowded;
  TimeNs now = now_ns(), moved_at = now;
  bool ended = false;
  Drive drove;
  for (int round = 0; !ended && !drove.gave_up && wheel_.holds(turn); ++round) {
    // What this waits for may end under another thread's lock; the bells need ours even then.
    const bool locked = lock_.try_lock();
    if (locked || what.ready()) {
      if (!locked) lock_.lock();
      Held held(lock_, exchange_, notifier_, std::adopt_lock);
      progress_.silence();
      if (held->poll(now)) moved_at = now_ns();
      now = now_ns();
      ended = what.ready() || now >= until;
      drove.gave_up = !ended && now - moved_at > (crowd_.here(now) ? crowded : spin);
      if (drove.gave_up) drove.watch = progress_.begin_watch(what, now, until);
      if (ended || (drove.gave_up && drove.watch == 0)) progress_.take_over(drove.gave_up);
    } else {
      now = now_ns();
    }
    lock_.step_back();
    const bool may_yield = now - moved_at > alone && round % yield_rounds == 0;
    if (may_yield && !crowd_.here(now)) now = crowd_.yield(now);
    cpu_relax();
  }
  if (!wheel_.holds(turn)) drove.gave_up = false;
  wheel_.leave(turn, now, ended);
  return drove;
}

}  // namespace tent
