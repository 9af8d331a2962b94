// Stage: tests. See faults.h.
#include "simulator/faults.h"

#include <algorithm>

#include "simulator/world.h"

namespace tent::sim {

void Faults::build() {
  for (std::uint32_t i = 0; i < world_.profile.faults; ++i) {
    const TimeNs at = world_.random.between(0, world_.profile.fault_time);
    world_.timeline.plan(at, EventKind::Strike, i);
  }
}

// A link that is up at both ends, on a rail that may fail.
Link* Faults::draw_link(bool any_rail) {
  auto& links = world_.network.links();
  if (links.empty()) return nullptr;
  const std::size_t start = world_.random.below(links.size());
  for (std::size_t i = 0; i < links.size(); ++i) {
    Link& link = *links[(start + i) % links.size()];
    if (!link.open(0) || !link.open(1) || link.broken) continue;
    if (any_rail || !world_.network.rail(link).spare) return &link;
  }
  return nullptr;
}

void Faults::strike() {
  const auto kind = static_cast<FaultKind>(pick(world_.random, world_.profile.fault_weights));
  world_.log("strike", int(kind));
  Random& random = world_.random;
  Link* link = draw_link(false);
  switch (kind) {
    case FaultKind::Reset:
      if (link == nullptr) return;
      world_.coverage.mark(Seen::LinkReset);
      return world_.network.break_down(*link, random.between(0, 300) * kMicrosecond,
                                       random.between(0, 300) * kMicrosecond);
    case FaultKind::HalfTold:
      if (link == nullptr) return;
      world_.coverage.mark(Seen::HalfTold);
      return world_.network.break_down(
          *link, random.between(0, 300) * kMicrosecond,
          random.chance(0.5) ? kNever : random.between(2, 60) * kMillisecond);
    case FaultKind::Hole:
      if (link != nullptr) hold(*link, kNever);
      return;
    case FaultKind::Stall:
      if (link != nullptr) {
        hold(*link, world_.now() + random.between(200, 40000) * kMicrosecond);
      }
      return;
    case FaultKind::Slow:
      return slow();
    case FaultKind::Outage:
      return outage();
    case FaultKind::Mischief:
      return mischief();
    case FaultKind::Stop:
      return stop();
    default:
      return end(kind);
  }
}

void Faults::hold(Link& link, TimeNs until) {
  world_.coverage.mark(until == kNever ? Seen::LinkHole : Seen::LinkStalled);
  const std::uint64_t which = world_.random.below(3);  // one direction, the other, both
  for (std::uint64_t end = 0; end < 2; ++end) {
    if (which != end && which != 2) continue;
    Pipe& pipe = link.pipe[end];
    pipe.held_until = std::max(pipe.held_until, until);
  }
}

void Faults::slow() {
  const Link* link = draw_link(false);
  if (link == nullptr) return;
  world_.network.rail(*link).slow_until =
      world_.now() + world_.random.between(1, 50) * kMillisecond;
  world_.coverage.mark(Seen::RailSlow);
}

void Faults::outage() {
  const Link* link = draw_link(false);
  if (link == nullptr) return;
  Rail& rail = world_.network.rail(*link);
  rail.out_until = world_.now() + world_.random.between(1, 100) * kMillisecond;
  world_.coverage.mark(Seen::RailOut);
  const bool silent = world_.random.chance(0.5);
  for (auto& other : world_.network.links()) {
    if (&world_.network.rail(*other) != &rail || other->broken) continue;
    if (silent) {
      world_.network.break_down(*other, kNever, kNever);
    } else {
      world_.network.break_down(*other, world_.random.between(0, 200) * kMicrosecond,
                                world_.random.between(0, 200) * kMicrosecond);
    }
  }
}

void Faults::mischief() {
  Link* link = draw_link(false);
  if (link == nullptr) return;
  const std::uint64_t drawn = 1 + world_.random.below(std::uint64_t(Mischief::kCount) - 1);
  link->pipe[world_.random.below(2)].mischief = static_cast<Mischief>(drawn);
}

void Faults::stop() {
  Process& process = *world_.processes[world_.random.below(world_.processes.size())];
  if (!process.runs()) return;
  process.stop();
  world_.coverage.mark(Seen::Stopped);
  const TimeNs timeout = world_.profile.settings.peer_timeout;
  const TimeNs pause = world_.random.chance(0.7) ? world_.random.between(100, 10000) * kMicrosecond
                                                 : world_.random.between(1, 2 * timeout);
  world_.log("stop", process.index());
  world_.timeline.plan(world_.now() + pause, EventKind::Resume, process.index());
}

void Faults::end(FaultKind kind) {
  const auto index = static_cast<std::uint32_t>(world_.random.below(world_.processes.size()));
  Process& process = *world_.processes[index];
  if (!process.lives()) return;
  if (kind == FaultKind::Bye && process.runs()) {
    process.said_bye = true;
    world_.coverage.mark(Seen::SaidBye);
    process.call([](Node& node, TimeNs now) { node.say_bye(now); });
    process.call([](Node& node, TimeNs now) { node.flush(now); });
    world_.carrier.pump_posted();
  } else {
    world_.coverage.mark(kind == FaultKind::Restart ? Seen::Restarted : Seen::Crashed);
  }
  process.end();
  if (kind == FaultKind::Restart) {
    world_.timeline.plan(world_.now() + world_.random.between(10, 20000) * kMicrosecond,
                         EventKind::Restart, index);
  }
}

void Faults::resume(std::uint32_t index) {
  Process& process = *world_.processes[index];
  if (!process.lives() || process.runs()) return;
  process.resume();
  world_.log("resume", index);
  auto& links = world_.network.links();
  const std::size_t start = links.empty() ? 0 : world_.random.below(links.size());
  for (std::size_t i = 0; i < links.size(); ++i) {  // what came first, from any link
    Link& link = *links[(start + i) % links.size()];
    const Pairing& pairing = world_.network.pairing(link.pairing);
    for (int end = 0; end < 2; ++end) {
      const auto e = std::size_t(end);
      if (pairing.process[e] != index || pairing.generation[e] != process.generation()) continue;
      world_.reader.read_all(link, end);
      if (link.open(end) && link.doomed[e]) world_.network.lost(link, end, "the peer closed it");
      world_.carrier.pump(link, end);
    }
  }
  process.touch();
}

void Faults::restart(std::uint32_t index) {
  Process& process = *world_.processes[index];
  if (process.lives()) return;
  process.start();
  for (std::uint32_t i = 0; i < world_.network.pairing_count(); ++i) {
    const Pairing& pairing = world_.network.pairing(i);
    for (std::uint64_t end = 0; end < 2; ++end) {
      if (pairing.process[1 - end] != index || !world_.random.chance(0.6)) continue;
      const TimeNs after = world_.random.between(50, 10000) * kMicrosecond;
      world_.timeline.plan(world_.now() + after, EventKind::Abandon, i, end);
    }
  }
}

void Faults::heal() {
  world_.log("heal");
  world_.network.heal();
  for (auto& process : world_.processes) {
    if (process->lives() && !process->runs()) resume(process->index());
  }
  // Whoever still believes in an incarnation that is gone hears of it, sooner or later.
  for (std::uint32_t i = 0; i < world_.network.pairing_count(); ++i) {
    if (world_.network.current(world_.network.pairing(i))) continue;
    for (std::uint64_t end = 0; end < 2; ++end) {
      const TimeNs after = world_.random.between(1, 2 * world_.profile.settings.peer_timeout);
      world_.timeline.plan(world_.now() + after, EventKind::Abandon, i, end);
    }
  }
}

}  // namespace tent::sim
