// Stage: tests. See process.h.
#include "simulator/process.h"

#include <algorithm>

#include "simulator/world.h"

namespace tent::sim {

Process::Process(World& world, std::uint32_t index, Arena& arena_to_use)
    : arena(arena_to_use), world_(world), index_(index) {}

void Process::start() {
  ++generation_;
  arena.reset(world_.profile.arena_bytes);
  exported.clear();
  said_bye = stopped_ = false;
  clock_start_ = static_cast<TimeNs>(world_.random.below(1'000'000'000'000'000));
  clock_skew_ = world_.random.between(-200, 200);
  node_ = std::make_unique<Node>(world_.profile.settings, *this);
  dirty_ = true;
  world_.log("start", index_, generation_);
  open_segment(false);
  open_segment(true);
}

void Process::end() {
  world_.log("end", index_, generation_);
  world_.network.process_gone(index_);
  world_.ledger.process_died(index_);
  node_.reset();
  reports_.clear();
  lost_.clear();
  noted_.clear();
  withdrawn_.clear();
  dirty_ = stopped_ = false;
  tick_at_ = kNever;
}

TimeNs Process::clock_at(TimeNs simulated) const {
  return clock_start_ + simulated + (simulated * clock_skew_ >> 20);
}

TimeNs Process::clock() const { return clock_at(world_.now()); }

TimeNs Process::simulated(TimeNs clock) const {
  const TimeNs since = clock - clock_start_;
  if (since > TimeNs{1} << 42) return kNever;
  TimeNs moment = since - (since * clock_skew_ >> 20) - since / (1 << 20);
  while (clock_at(moment) < clock) ++moment;
  return moment;
}

void Process::settle() {
  while (!lost_.empty() || !noted_.empty() || !reports_.empty()) {
    if (!lost_.empty()) {
      const auto lost = std::exchange(lost_, {});
      for (const auto& [peer, why] : lost) world_.network.peer_lost(index_, peer, why);
    } else if (!noted_.empty()) {
      const auto noted = std::exchange(noted_, {});
      for (SegmentId segment : noted) take_notes(segment);
    } else {
      const auto reports = std::exchange(reports_, {});
      for (const Report& report : reports) world_.ledger.ended(index_, report);
    }
  }
}

void Process::take_notes(SegmentId id) {
  Segment* segment = node_->segments().find(id);
  if (segment == nullptr) return world_.fail("P3: a notification for a segment that is closed");
  while (!segment->notes.empty()) {
    const Notification note = std::move(segment->notes.front());
    segment->notes.pop_front();
    world_.ledger.noted(index_, note);
  }
}

void Process::finish() {
  if (!runs()) {
    dirty_ = false;
    return;
  }
  call([](Node& node, TimeNs now) { node.flush(now); });
  const TimeNs next = call([](Node& node, TimeNs now) { return node.tick(now); });
  see_to_withdrawn();
  dirty_ = false;
  // A process that waits for a moment is woken a little late.
  tick_at_ = next == kNever ? kNever
                            : std::max(simulated(next), world_.now() + 100) +
                                  static_cast<TimeNs>(world_.random.below(5 * kMicrosecond));
  if (tick_at_ < tick_planned_) {
    tick_planned_ = tick_at_;
    world_.timeline.plan(tick_at_, EventKind::Tick, index_);
  }
}

void Process::tick_due() {
  tick_planned_ = kNever;
  if (!runs() || tick_at_ == kNever) return;
  if (tick_at_ <= world_.now()) {
    dirty_ = true;
  } else {
    tick_planned_ = tick_at_;
    world_.timeline.plan(tick_at_, EventKind::Tick, index_);
  }
}

std::uint32_t Process::open_segment(bool cache) {
  Exported made;
  made.cache = cache;
  made.unit_bytes = cache ? 256u << world_.random.below(3) : 256;
  const std::uint64_t units = cache ? 8 : world_.profile.arena_bytes / 5 / made.unit_bytes;
  const std::uint64_t planes = cache ? 2 : 1;
  for (std::uint64_t i = 0; i < planes; ++i) {
    bool clean = true;
    const std::uint64_t address = arena.take(units * made.unit_bytes, &clean);
    if (!clean) world_.fail("P1: free memory was written before a segment got it");
    if (address == 0) {
      for (const Plane& plane : made.planes) arena.give_back(plane.base, plane.bytes);
      return kNone;
    }
    made.planes.push_back({address, units * made.unit_bytes});
  }
  made.busy.assign(units, 0);
  made.revoked_at.assign(units, 0);
  made.open = true;
  made.key = world_.random.next();
  made.readable = cache || !world_.random.chance(0.1);
  made.writable = cache || !world_.random.chance(0.1);
  made.id = node_->segments()
                .add(made.planes, made.readable, made.writable, cache ? units : 0, made.key)
                .id;
  world_.log("segment", index_, made.id);
  exported.push_back(std::move(made));
  return static_cast<std::uint32_t>(exported.size() - 1);
}

void Process::close_segment(std::uint32_t index) {
  world_.log("close_segment", index_, exported[index].id);
  exported[index].open = false;
  exported[index].closing = true;
  call([&](Node& node, TimeNs now) { node.close_segment(exported[index].id, now); });
  world_.ledger.withdraw(index_, index, nullptr);
  withdrawn_.push_back(index);
  see_to_withdrawn();
}

void Process::revoke(std::uint32_t index, const std::vector<std::uint32_t>& units) {
  Exported& segment = exported[index];
  world_.log("revoke", index_, segment.id, units.size());
  const std::vector<std::int64_t> blocks(units.begin(), units.end());
  call([&](Node& node, TimeNs now) { node.revoke(segment.id, blocks, now); });
  segment.epoch = node_->segments().find(segment.id)->epoch;
  for (std::uint32_t unit : units) segment.revoked_at[unit] = segment.epoch;
  world_.ledger.withdraw(index_, index, &units);
  withdrawn_.push_back(index);
  see_to_withdrawn();
}

// What a reader on this host may still be copying is given back when the Node says that it is not.
void Process::see_to_withdrawn() {
  std::erase_if(withdrawn_, [&](std::uint32_t index) {
    Exported& segment = exported[index];
    if (node_->busy(segment.id)) return false;
    world_.ledger.release_withdrawn(index_, index);
    if (segment.closing) {
      segment.closing = false;
      for (const Plane& plane : segment.planes) {
        if (!arena.give_back(plane.base, plane.bytes)) {
          world_.fail("P1: a closed segment was written");
        }
      }
      world_.coverage.mark(Seen::ReusedAtOnce);
    }
    return true;
  });
}

void Process::post(LinkId link, Frame frame) {
  world_.carrier.post(index_, link, std::move(frame));
}

void Process::close(LinkId link, const Status& why) {
  world_.journal.remark(world_.now(), "  process " + std::to_string(index_) + " closes link " +
                                          std::to_string(link & 0xfffff) + ": " + why.text);
  world_.network.close(index_, link);
}

void Process::done(Report report) { reports_.push_back(std::move(report)); }

void Process::dial(PeerId peer, RailKinds rails) { world_.network.dial(index_, peer, rails); }

void Process::peer_lost(PeerId peer, const Status& why) { lost_.emplace_back(peer, why); }

void Process::noted(SegmentId segment) { noted_.push_back(segment); }

void Process::traced(const SliceEvent& event) {
  if (event.ended < event.posted) world_.fail("P7: a slice ended before it was posted");
}

bool Process::reaches(LinkId id, const Layout& source, Device, RailKinds) {
  const Link* link = world_.network.find_link(id);
  if (link == nullptr || source.parts().empty()) return true;
  // Shared memory is the lower half of the arena.
  if (world_.network.rail(*link).kind != RailKind::Shm) return true;
  return arena.offset(source.parts().front().base) < world_.profile.arena_bytes / 2;
}

bool Process::placing(LinkId id, TransferId flow) {
  Link* link = world_.network.find_link(id);
  if (link == nullptr) return false;
  Pipe& pipe = link->pipe[std::size_t(1 - world_.network.end_of(*link, index_))];
  return pipe.was_granted && pipe.parcels.front().frame.header.flow == flow;
}

bool Process::behind(LinkId id) {
  Link* link = world_.network.find_link(id);
  if (link == nullptr) return false;
  return !link->pipe[std::size_t(1 - world_.network.end_of(*link, index_))].chunks.empty();
}

}  // namespace tent::sim
