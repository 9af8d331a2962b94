// Stage: tests. See world.h.
#include "simulator/world.h"

#include <array>

#include "simulator/verdict.h"

namespace tent::sim {
namespace {

constexpr std::uint32_t kProcessesMax = 5;
constexpr std::uint64_t kEventsMax = 300'000;  // far more than any sound schedule has
constexpr TimeNs kReviewEvery = 1 * kMillisecond;
constexpr TimeNs kLastPost = 4 * kMillisecond;  // operations plan their halves this far ahead
constexpr TimeNs kDrain = 10 * kMillisecond;

// The memory of the simulated processes outlives a schedule: making it anew would cost more than
// most schedules do.
Arena& arena(std::size_t index) {
  thread_local std::array<Arena, kProcessesMax> arenas;
  return arenas[index];
}

}  // namespace

World::World(std::uint64_t seed, int forced_family, bool keep_text)
    : random(seed),
      profile(draw_profile(random, forced_family)),
      journal(keep_text),
      ledger(*this),
      network(*this),
      carrier(*this),
      reader(*this),
      workload(*this),
      faults(*this) {
  journal.remark(0,
                 "family " + std::string(kFamilyNames[static_cast<std::size_t>(profile.family)]));
  for (std::uint32_t i = 0; i < profile.processes; ++i) {
    processes.push_back(std::make_unique<Process>(*this, i, arena(i)));
    processes.back()->start();
  }
  network.build();
  workload.build();
  faults.build();
  timeline.plan(profile.fault_time, EventKind::Review);
  // Everything must have ended by then: silence is noticed within the timeout of a peer, a cancel
  // is answered within another one.
  give_up_at_ = profile.fault_time + 3 * profile.settings.peer_timeout + 600 * kMillisecond;
}

void World::run() {
  while (!over_ && !journal.failed()) {
    if (timeline.empty()) return fail("nothing is left to happen, but it is not over");
    if (++events > kEventsMax) return fail("P5: too many events: something goes round in circles");
    dispatch(timeline.take());
    finish_calls();
  }
}

void World::dispatch(const Event& e) {
  switch (e.kind) {
    case EventKind::Arrive:
      return reader.arrive(*network.links()[e.a], static_cast<int>(e.b));
    case EventKind::Up:
      return network.up(*network.links()[e.a], static_cast<int>(e.b));
    case EventKind::Told:
      return network.told(*network.links()[e.a], static_cast<int>(e.b));
    case EventKind::Connect:
      return network.connect(e.a, e.b);
    case EventKind::Tick:
      return processes[e.a]->tick_due();
    case EventKind::Operate:
      return workload.operate();
    case EventKind::Post:
      return workload.post(e.a, static_cast<int>(e.b));
    case EventKind::Cancel:
      return workload.cancel(e.a);
    case EventKind::Strike:
      return faults.strike();
    case EventKind::Resume:
      return faults.resume(e.a);
    case EventKind::Restart:
      return faults.restart(e.a);
    case EventKind::Abandon:
      return network.abandon(e.a, static_cast<int>(e.b));
    case EventKind::NoRails:
      return network.no_rails(e.a, static_cast<int>(e.b & 1), static_cast<RailKinds>(e.b >> 1));
    case EventKind::Review:
      return review();
    case EventKind::Finish:
      return finish();
  }
}

// Nodes that were called are flushed, and what they posted is sent, until nobody has more to say.
void World::finish_calls() {
  bool busy = true;
  for (int round = 0; busy && !journal.failed(); ++round) {
    if (round > 1000) return fail("P5: two Nodes answer each other without an end");
    busy = false;
    for (auto& process : processes) {
      if (!process->dirty()) continue;
      process->finish();
      busy = true;
    }
    carrier.pump_posted();
  }
}

// After the last fault: cancels what has no other half, and sees that the rest comes to its end.
void World::review() {
  if (!healed_) {
    healed_ = true;
    faults.heal();
  }
  if (ledger.live() == 0 && now() >= profile.fault_time + kLastPost) {
    timeline.plan(now() + kDrain, EventKind::Finish);
    return;
  }
  for (std::uint32_t i = 0; i < ledger.size(); ++i) {
    if (ledger.at(i).ended) continue;
    if (now() > give_up_at_) {
      ledger.fail(ledger.at(i), "P5: it does not come to an end");
    } else if (now() >= profile.fault_time + kLastPost && !ledger.at(i).cancel_asked &&
               !must_end(*this, ledger.at(i))) {
      workload.cancel(i);
    }
  }
  timeline.plan(now() + kReviewEvery, EventKind::Review);
}

void World::finish() {
  for (auto& process : processes) {
    if (!process->lives()) continue;
    const NodeStats stats = process->node().stats();
    const std::uint64_t left = stats.outstanding + stats.flows_in + stats.flows_out;
    if (left == 0) continue;
    if (now() < give_up_at_) {  // the last word on a flow may still be under way
      return timeline.plan(now() + kDrain, EventKind::Finish);
    }
    fail("process " + std::to_string(process->index()) + " still remembers " +
         std::to_string(left) + " transfers and flows when all is done");
  }
  for (auto& process : processes) {
    if (process->lives() && !process->arena.clean()) {
      fail("P1: free memory of process " + std::to_string(process->index()) + " was written");
    }
  }
  check_reasons(*this);
  over_ = true;
}

}  // namespace tent::sim
