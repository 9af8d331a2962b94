// Stage: tests. See one_sided.h.
#include "simulator/one_sided.h"

#include <algorithm>
#include <utility>

#include "simulator/world.h"

namespace tent::sim {
namespace {

std::uint32_t draw_segment(World& world, const Process& process, bool cache) {
  std::vector<std::uint32_t> found;
  for (std::uint32_t i = 0; i < process.exported.size(); ++i) {
    if (process.exported[i].open && process.exported[i].cache == cache) found.push_back(i);
  }
  return found.empty() ? kNone : found[world.random.below(found.size())];
}

Process* draw_running(World& world) {
  Process& process = *world.processes[world.random.below(world.processes.size())];
  return process.runs() ? &process : nullptr;
}

}  // namespace

bool draw_one_sided(World& world, Request::Op op, bool cache, std::uint32_t from,
                    std::uint32_t owner, std::uint64_t bytes, Tracked& t, Request& request) {
  Process& process = *world.processes[owner];
  if (!process.lives()) return false;
  const std::uint32_t index = draw_segment(world, process, cache);
  if (index == kNone) return false;
  Exported& segment = process.exported[index];
  const std::uint64_t unit_bytes = segment.unit_bytes * segment.planes.size();
  const std::uint64_t wanted = cache ? 1 + world.random.below(5) : bytes / unit_bytes + 1;
  t.units = segment.take(static_cast<std::uint32_t>(wanted), world.random);
  if (t.units.empty()) return false;
  const std::uint64_t room = t.units.size() * unit_bytes;
  const std::uint64_t used = cache ? room : std::min(bytes, room);
  if (!world.workload.take_local(from, used, t)) {
    for (std::uint32_t unit : t.units) segment.busy[unit] = 0;
    return false;
  }
  t.op = op;
  t.owner = owner;
  t.exported = index;
  t.owner_generation = process.generation();
  t.remote_open = true;
  t.pattern = world.random.next();
  request.remote.segment = segment.id;
  request.remote.key = segment.key;
  request.remote.epoch = segment.epoch;
  request.remote.layout = segment.offsets(t.units, used, world.random);
  t.remote = segment.addresses(request.remote.layout);
  if (!(op == Request::Op::Write ? segment.writable : segment.readable)) t.excuses |= kForbidden;
  fill(op == Request::Op::Write ? t.local : t.remote, t.pattern);
  if (op == Request::Op::Write && world.random.chance(cache ? 0.8 : 0.2)) {
    t.has_note = request.has_note = true;  // its number is added when it is known
    request.note = std::string(world.random.below(3) * 40, '.');
  }
  return true;
}

void forbid(World& world, Tracked& t, Request& request) {
  t.excuses |= kForbidden;
  const Exported& segment = world.processes[t.owner]->exported[t.exported];
  Target& target = request.remote;
  std::vector<Part> parts = target.layout.parts();
  switch (world.random.below(4)) {
    case 0:
      target.key ^= 1ull << world.random.below(64);
      return;
    case 1:
      target.segment += 1000;
      return;
    case 2:
      parts.back().base = world.random.chance(0.5) ? segment.planes[0].bytes
                                                   : ~std::uint64_t{0} - world.random.below(100);
      if (t.bytes == 0) parts.back().plane = 9;
      break;
    default:
      parts.back().plane += 5;
  }
  target.layout = Layout(std::move(parts));
}

void revoke_blocks(World& world) {
  Process* process = draw_running(world);
  if (process == nullptr) return;
  const std::uint32_t index = draw_segment(world, *process, true);
  if (index == kNone) return;
  std::vector<std::uint32_t> units;
  for (std::uint32_t unit = 0; unit < process->exported[index].units(); ++unit) {
    if (world.random.chance(0.4)) units.push_back(unit);
  }
  process->revoke(index, units);
}

void close_and_reopen(World& world) {
  Process* process = draw_running(world);
  if (process == nullptr) return;
  const bool cache = world.random.chance(0.5);
  const std::uint32_t index = draw_segment(world, *process, cache);
  if (index == kNone) return;
  process->close_segment(index);
  if (world.random.chance(0.8)) process->open_segment(cache);
}

}  // namespace tent::sim
