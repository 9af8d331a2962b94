// Stage: tests. See network.h.
#include "simulator/network.h"

#include <algorithm>
#include <utility>

#include "simulator/world.h"

namespace tent::sim {
namespace {

std::uint32_t pair_index(std::uint32_t a, std::uint32_t b) {
  if (a > b) std::swap(a, b);
  return b * (b - 1) / 2 + a;
}

}  // namespace

Rail Network::draw_rail(std::uint32_t a, std::uint32_t b, std::uint32_t index) {
  Random& random = world_.random;
  Rail rail;
  rail.spare = index == 0 && world_.profile.spare;
  if (index != 0 && random.chance(world_.profile.local_rail)) {
    rail.kind = random.chance(0.5) ? RailKind::Cma : RailKind::Shm;
  } else if (random.chance(world_.profile.placing_rail)) {
    rail.kind = RailKind::Rdma;
    rail.places_by_itself = true;
  }
  rail.name = "rail " + std::to_string(a) + ">" + std::to_string(b) + " " + std::to_string(index);
  rail.ns_per_byte = static_cast<double>(random.between(1, 20));
  rail.latency = random.between(2, 60) * kMicrosecond;
  rail.jitter = random.chance(0.5) ? 0 : random.between(1, 40) * kMicrosecond;
  rail.buffer_bytes = 1024u << random.below(6);
  return rail;
}

void Network::build() {
  const std::uint32_t processes = world_.profile.processes;
  for (std::uint32_t b = 1; b < processes; ++b) {
    for (std::uint32_t a = 0; a < b; ++a) {
      const auto count = static_cast<std::uint32_t>(
          world_.random.between(world_.profile.rails_min, world_.profile.rails_max));
      auto& rails = rails_.emplace_back();
      for (std::uint32_t i = 0; i < count; ++i) rails.push_back(draw_rail(a, b, i));
    }
  }
  current_.assign(rails_.size(), kNone);
}

std::vector<Rail>& Network::rails(std::uint32_t a, std::uint32_t b) {
  return rails_[pair_index(a, b)];
}

Rail& Network::rail(const Link& link) {
  const Pairing& p = pairings_[link.pairing];
  return rails(p.process[0], p.process[1])[link.rail];
}

bool Network::on_one_host(const Link& link) {
  const RailKind kind = rail(link).kind;
  return kind == RailKind::Cma || kind == RailKind::Shm;
}

bool Network::current(const Pairing& p) const {
  for (std::size_t end = 0; end < 2; ++end) {
    const Process& process = *world_.processes[p.process[end]];
    if (p.lost[end] || !process.lives() || process.generation() != p.generation[end]) return false;
  }
  return true;
}

std::uint32_t Network::pairing_of(std::uint32_t a, std::uint32_t b) {
  if (a > b) std::swap(a, b);
  std::uint32_t& index = current_[pair_index(a, b)];
  const std::array<std::uint32_t, 2> both{a, b};
  if (index != kNone) {
    Pairing& old = pairings_[index];
    if (current(old)) return index;
    for (std::size_t end = 0; end < 2; ++end) {  // whoever still believes in it must hear first
      const Process& process = *world_.processes[both[end]];
      const bool same = process.lives() && process.generation() == old.generation[end];
      if (same && !old.lost[end]) return kNone;
    }
  }
  Pairing made;
  made.process = both;
  for (std::size_t end = 0; end < 2; ++end) {
    if (!world_.processes[both[end]]->lives()) return kNone;
  }
  for (std::size_t end = 0; end < 2; ++end) {
    Process& process = *world_.processes[both[end]];
    made.generation[end] = process.generation();
    const std::string name = "process " + std::to_string(both[1 - end]);
    made.peer[end] = process.call([&](Node& node, TimeNs) { return node.add_peer(name); });
  }
  made.heard = {world_.now(), world_.now()};
  made.dialing.assign(rails(a, b).size(), 0);
  index = pairing_count();
  pairings_.push_back(std::move(made));
  world_.log("pairing", index, a, b);
  for (std::uint32_t i = 0; i < rails(a, b).size(); ++i) {
    plan_connect(index, i, world_.random.between(0, 500) * kMicrosecond);
  }
  return index;
}

std::uint32_t Network::find_pairing(std::uint32_t process, PeerId peer, int* end) const {
  for (std::uint32_t i = pairing_count(); i-- > 0;) {
    const Pairing& p = pairings_[i];
    for (int e = 0; e < 2; ++e) {
      const auto at = std::size_t(e);
      if (p.process[at] != process || p.peer[at] != peer) continue;
      if (p.generation[at] != world_.processes[process]->generation()) continue;
      *end = e;
      return i;
    }
  }
  return kNone;
}

Link* Network::find_link(LinkId id) {
  const std::uint64_t index = (id & 0xfffff) - 1;
  return index < links_.size() && links_[index]->id == id ? links_[index].get() : nullptr;
}

int Network::end_of(const Link& link, std::uint32_t process) const {
  return pairings_[link.pairing].process[0] == process ? 0 : 1;
}

void Network::connect(std::uint32_t index, std::uint32_t rail_index) {
  Pairing& p = pairings_[index];
  p.dialing[rail_index] = 0;
  if (!current(p)) {
    for (int end = 0; end < 2; ++end) abandon(index, end);
    return;
  }
  Rail& rail = rails(p.process[0], p.process[1])[rail_index];
  const bool both_run =
      world_.processes[p.process[0]]->runs() && world_.processes[p.process[1]]->runs();
  if (rail.out_until > world_.now() || !both_run) {
    return plan_connect(index, rail_index, world_.random.between(2, 15) * kMillisecond);
  }
  auto link = std::make_unique<Link>();
  link->index = static_cast<std::uint32_t>(links_.size());
  link->id = (world_.random.next() << 20 | (link->index + 1)) & 0x7fffffffffffffffull;
  link->pairing = index;
  link->rail = rail_index;
  p.links.push_back(link->index);
  for (std::uint64_t end = 0; end < 2; ++end) {
    world_.timeline.plan(
        world_.now() + world_.random.between(0, 2 * rail.latency + 20 * kMicrosecond),
        EventKind::Up, link->index, end);
  }
  world_.log("connect", index, rail_index, link->index);
  if (rail.out_until != 0) world_.coverage.mark(Seen::LinkBack);
  links_.push_back(std::move(link));
}

// The control plane keeps every rail connected: what fails is tried again.
void Network::plan_connect(std::uint32_t index, std::uint32_t rail, TimeNs after) {
  Pairing& p = pairings_[index];
  if (p.dialing[rail] != 0) return;
  p.dialing[rail] = 1;
  world_.timeline.plan(world_.now() + after, EventKind::Connect, index, rail);
}

void Network::up(Link& link, int end) {
  const Pairing& p = pairings_[link.pairing];
  const auto e = std::size_t(end);
  Process& process = *world_.processes[p.process[e]];
  if (link.state[e] != Link::State::Pending) return;
  if (!process.lives() || process.generation() != p.generation[e] || p.lost[e] || link.doomed[e]) {
    return close_end(link, end, false, true);
  }
  if (process.lives() && !process.runs()) {  // stopped: when it runs again
    world_.timeline.plan(world_.now() + kMillisecond, EventKind::Up, link.index, e);
    return;
  }
  world_.log("up", link.index, end);
  link.state[e] = Link::State::Up;
  const Rail& rail = this->rail(link);
  LinkInfo info;
  info.kind = rail.kind;
  info.rail = rail.name;
  info.places_by_itself = rail.places_by_itself;
  if (world_.random.chance(0.3)) info.rate_hint = 1 / rail.ns_per_byte;
  if (world_.random.chance(0.1)) info.slice_bytes_max = 512;
  process.call([&](Node& node, TimeNs now) { node.link_up(p.peer[e], link.id, info, now); });
  world_.reader.read_all(link, end);
}

void Network::close(std::uint32_t process, LinkId id) {
  Link* link = find_link(id);
  if (link == nullptr) return world_.fail("a Node closed a link that never was");
  const int end = end_of(*link, process);
  if (!link->open(end)) return world_.fail("a Node closed a link that was closed");
  world_.coverage.mark(Seen::Fenced);
  close_end(*link, end, world_.random.chance(world_.profile.late_tail), true);
}

void Network::lost(Link& link, int end, const char* why) {
  if (!link.open(end)) return;
  const Pairing& p = pairings_[link.pairing];
  world_.log("lost", link.index, end);
  close_end(link, end, false, true);
  world_.processes[p.process[std::size_t(end)]]->call([&](Node& node, TimeNs now) {
    node.link_down(link.id, {Code::Failed, why, rail(link).name}, now);
  });
}

// From here on this end receives nothing. What it has sent either still arrives, in order, with the
// end of the stream behind it, or is lost.
void Network::close_end(Link& link, int end, bool late_tail, bool tell) {
  const auto e = std::size_t(end);
  link.state[e] = Link::State::Closed;
  world_.log("close", link.index, end, late_tail);
  Pipe& in = link.pipe[1 - e];
  if (in.was_granted) world_.coverage.mark(Seen::PlacementStopped);
  in.clear();
  Pipe& out = link.pipe[e];
  if (on_one_host(link) || !late_tail) {
    out.clear();
  } else {
    const bool torn = out.sending < out.parcels.size() && out.parcels[out.sending].started;
    out.parcels.resize(out.sending + (torn ? 1 : 0));
    if (!out.chunks.empty()) world_.coverage.mark(Seen::LateBytes);
  }
  if (current(pairings_[link.pairing]) && (rail(link).spare || world_.random.chance(0.7))) {
    plan_connect(link.pairing, link.rail, world_.random.between(1, 20) * kMillisecond);
  }
  if (link.state[1 - e] == Link::State::Closed || !tell) return;
  const TimeNs latency = rail(link).latency + world_.random.between(0, 100) * kMicrosecond;
  const TimeNs at = std::max({world_.now() + latency, out.last_at + 1, out.held_until});
  if (out.held_until != kNever) world_.timeline.plan(at, EventKind::Told, link.index, 1 - e);
}

void Network::told(Link& link, int end) {
  const auto e = std::size_t(end);
  const Process& process = *world_.processes[pairings_[link.pairing].process[e]];
  if (link.state[e] == Link::State::Pending || !process.runs()) {
    link.doomed[e] = true;
    return;
  }
  const Pipe& in = link.pipe[1 - e];
  if (!link.broken && in.held_until > world_.now() &&
      !in.chunks.empty()) {  // still behind what it sent
    if (in.held_until != kNever) {
      world_.timeline.plan(in.held_until + 1, EventKind::Told, link.index, e);
    }
    return;
  }
  lost(link, end, "the peer closed it");
}

void Network::break_down(Link& link, TimeNs told_first, TimeNs told_second) {
  const int first = world_.random.chance(0.5) ? 1 : 0;
  const bool tail_lost = world_.random.chance(0.5);
  link.broken = true;
  for (Pipe& pipe : link.pipe) {
    pipe.held_until = kNever;
    if (tail_lost) pipe.clear();
  }
  const std::array<TimeNs, 2> after{told_first, told_second};
  for (int i = 0; i < 2; ++i) {
    const int end = i == 0 ? first : 1 - first;
    if (after[std::size_t(i)] == kNever) continue;
    world_.timeline.plan(world_.now() + after[std::size_t(i)], EventKind::Told, link.index, end);
  }
}

void Network::dial(std::uint32_t process, PeerId peer, RailKinds kinds) {
  int end = 0;
  const std::uint32_t index = find_pairing(process, peer, &end);
  if (index == kNone) return world_.fail("a Node dials a peer that it was never given");
  Pairing& p = pairings_[index];
  world_.log("dial", index, end, kinds);
  TimeNs& since = p.waits_since[std::size_t(end)];
  if (since == kNever) since = world_.now();
  bool any = false;
  const auto& all = rails(p.process[0], p.process[1]);
  for (std::uint32_t i = 0; i < all.size(); ++i) {
    if ((kinds & rail_bit(all[i].kind)) == 0) continue;
    any = true;
    const bool open = std::any_of(p.links.begin(), p.links.end(), [&](std::uint32_t link) {
      return links_[link]->rail == i &&
             links_[link]->state[std::size_t(end)] != Link::State::Closed;
    });
    if (!open) plan_connect(index, i, world_.random.between(20, 1000) * kMicrosecond);
  }
  if (any) return;
  world_.timeline.plan(world_.now() + 50 * kMicrosecond, EventKind::NoRails, index,
                       static_cast<std::uint64_t>(end) | std::uint64_t{kinds} << 1);
}

void Network::no_rails(std::uint32_t index, int end, RailKinds kinds) {
  const Pairing& p = pairings_[index];
  const auto e = std::size_t(end);
  Process& process = *world_.processes[p.process[e]];
  if (p.lost[e] || !process.lives() || process.generation() != p.generation[e]) return;
  process.call([&](Node& node, TimeNs now) {
    node.no_rails(p.peer[e], kinds, "there is no such rail", now);
  });
}

void Network::abandon(std::uint32_t index, int end) {
  Pairing& p = pairings_[index];
  const auto e = std::size_t(end);
  Process& process = *world_.processes[p.process[e]];
  if (p.lost[e] || !process.lives() || process.generation() != p.generation[e]) return;
  if (!process.runs()) {  // it hears of it when it runs again
    world_.timeline.plan(world_.now() + kMillisecond, EventKind::Abandon, index, e);
    return;
  }
  world_.log("abandon", index, end);
  p.lost[e] = true;
  process.call([&](Node& node, TimeNs now) {
    node.lose_peer(p.peer[e], {Code::PeerLost, "the peer is another incarnation now", ""}, now);
  });
  world_.ledger.session_lost(index, end);
  check_no_links(p, end);
}

void Network::peer_lost(std::uint32_t process, PeerId peer, const Status& why) {
  int end = 0;
  const std::uint32_t index = find_pairing(process, peer, &end);
  if (index == kNone) return world_.fail("a Node lost a peer that it was never given");
  Pairing& p = pairings_[index];
  const auto e = std::size_t(end);
  if (p.lost[e]) return;
  world_.log("peer_lost", index, end);
  world_.journal.remark(world_.now(), "  " + why.text);
  check_loss(p, end, why);
  p.lost[e] = true;
  world_.ledger.session_lost(index, end);
  check_no_links(p, end);
  if (world_.random.chance(0.6)) {
    world_.timeline.plan(world_.now() + world_.random.between(100, 8000) * kMicrosecond,
                         EventKind::Abandon, index, 1 - e);
  }
}

// A peer may be given up when it says so itself, or was silent for long while it was spoken to.
void Network::check_loss(const Pairing& p, int end, const Status& why) {
  const auto e = std::size_t(end);
  const Process& other = *world_.processes[p.process[1 - e]];
  if (other.said_bye || other.generation() != p.generation[1 - e]) return;
  if (world_.profile.spare && other.lives()) {
    return world_.fail("P4: a peer with a working rail was given up: " + why.text);
  }
  const TimeNs since =
      p.waits_since[e] == kNever ? p.heard[e] : std::max(p.heard[e], p.waits_since[e]);
  const CoreSettings& settings = world_.profile.settings;  // it speaks at least once a keepalive
  if (world_.now() - since < settings.peer_timeout / 10 * 9 - settings.keepalive) {
    world_.fail("P4: a peer was given up that was not silent for long: " + why.text);
  }
}

void Network::check_no_links(const Pairing& p, int end) {
  for (std::uint32_t index : p.links) {
    if (links_[index]->open(end)) world_.fail("P1: a link outlives the session that was given up");
  }
}

void Network::process_gone(std::uint32_t process) {
  const bool quiet = world_.random.chance(0.3);
  for (auto& link : links_) {
    const Pairing& p = pairings_[link->pairing];
    for (int end = 0; end < 2; ++end) {
      const auto e = std::size_t(end);
      if (p.process[e] != process || link->state[e] == Link::State::Closed) continue;
      close_end(*link, end, world_.random.chance(world_.profile.late_tail), !quiet);
    }
  }
}

void Network::heal() {
  for (auto& rails : rails_) {
    for (Rail& rail : rails) {
      rail.out_until = std::min(rail.out_until, world_.now());
      rail.slow_until = std::min(rail.slow_until, world_.now());
    }
  }
}

}  // namespace tent::sim
