// Stage: tests. See workload.h.
#include "simulator/workload.h"

#include <algorithm>
#include <utility>

#include "simulator/one_sided.h"
#include "simulator/world.h"

namespace tent::sim {
namespace {

constexpr std::uint32_t kFollowUpsMax = 20;
constexpr std::uint64_t kContext = 7;

}  // namespace

void Workload::build() {
  for (std::uint32_t i = 0; i < world_.profile.operations; ++i) {
    world_.timeline.plan(world_.random.between(0, world_.profile.work_time), EventKind::Operate, i);
  }
}

void Workload::operate() {
  switch (static_cast<OperationKind>(pick(world_.random, world_.profile.operation_weights))) {
    case OperationKind::Message:
      return message(true, true, false);
    case OperationKind::InOrder:
      return in_order();
    case OperationKind::AnySource:
      return any_source();
    case OperationKind::Lonely:
      return world_.random.chance(0.5) ? message(true, false, false) : message(false, true, false);
    case OperationKind::Mismatched:
      return message(true, true, true);
    case OperationKind::Write:
      return one_sided(Request::Op::Write, false, false);
    case OperationKind::BlockWrite:
      return one_sided(Request::Op::Write, true, false);
    case OperationKind::Read:
      return one_sided(Request::Op::Read, world_.random.chance(0.5), false);
    case OperationKind::Forbidden:
      return one_sided(world_.random.chance(0.5) ? Request::Op::Read : Request::Op::Write,
                       world_.random.chance(0.5), true);
    case OperationKind::Revoke:
      return revoke_blocks(world_);
    default:
      return close_and_reopen(world_);
  }
}

bool Workload::draw_pair(std::uint32_t& from, std::uint32_t& to, std::uint32_t& pairing) {
  const std::size_t count = world_.processes.size();
  from = static_cast<std::uint32_t>(world_.random.below(count));
  to = static_cast<std::uint32_t>((from + 1 + world_.random.below(count - 1)) % count);
  if (!world_.processes[from]->runs()) return false;
  pairing = world_.network.pairing_of(from, to);
  return pairing != kNone;
}

std::uint64_t Workload::draw_bytes() {
  Random& random = world_.random;
  const std::uint64_t most = world_.profile.bytes_max;
  if (random.chance(0.05)) return 0;
  if (random.chance(0.25)) return 1 + random.below(world_.profile.settings.inline_bytes_max + 1);
  if (random.chance(0.3)) return 1 + random.below(most / 8);
  return (1 + random.below(most / 64)) * 64;
}

bool Workload::take_local(std::uint32_t index, std::uint64_t bytes, Tracked& tracked) {
  Arena& arena = world_.processes[index]->arena;
  const bool scatter = bytes >= 128 && bytes % 64 == 0 && world_.random.chance(0.3);
  const std::uint64_t shift = scatter ? 0 : world_.random.below(16);  // odd addresses too
  tracked.span_bytes = scatter ? bytes * 3 / 2 : bytes + shift;
  bool clean = true;
  tracked.span = arena.take(tracked.span_bytes, &clean);
  if (!clean) world_.fail("P1: free memory was written before a transfer got it");
  if (tracked.span == 0) return false;
  tracked.bytes = bytes;
  tracked.process = index;
  tracked.generation = world_.processes[index]->generation();
  tracked.scattered = scatter;
  if (!scatter) {
    tracked.local = Layout::contiguous(tracked.span + shift, bytes);
    return true;
  }
  Part part;  // 64 bytes, a gap of 32, from the end to the start
  part.base = tracked.span + (bytes / 64 - 1) * 96;
  part.piece_bytes = 64;
  part.dims = {{bytes / 64, -96}};
  tracked.local = Layout(std::vector<Part>{std::move(part)});
  return true;
}

void Workload::submit(Tracked tracked, Request request, bool may_be_ended) {
  Process& process = *world_.processes[tracked.process];
  tracked.id = request.id = process.node().next_id();
  request.op = tracked.op;
  request.local = tracked.local;
  Random& random = world_.random;
  if (random.chance(0.3)) request.priority = Priority::Background;
  if (random.chance(0.2)) request.deadline = process.clock() + random.between(0, 10'000'000);
  TimeNs cancel_at = kNever;
  if (may_be_ended && random.chance(world_.profile.cancel)) {
    cancel_at = world_.now() + random.between(0, 3000) * kMicrosecond;
  }
  if (may_be_ended && random.chance(world_.profile.expire)) {
    const TimeNs after = random.between(10, 5000) * kMicrosecond;
    tracked.expires = world_.now() + after;
    tracked.stop_asked = tracked.expires;
    tracked.excuses |= kOwnEnd;
    request.expires = process.clock_at(tracked.expires);
  }
  if (tracked.op != Request::Op::Recv && tracked.bytes != 0 && random.chance(0.1)) {
    request.rails = draw_rails(tracked);
  }
  const std::uint32_t number = world_.ledger.add(std::move(tracked)).number;
  world_.log("submit", process.index(), number, int(request.op), request.id, request.local.bytes(),
             request.tag);
  if (cancel_at != kNever) world_.timeline.plan(cancel_at, EventKind::Cancel, number);
  process.call([&](Node& node, TimeNs now) { node.submit(std::move(request), now); });
}

// Some of the rail kinds that exist between the two, or, rarely, none of them.
RailKinds Workload::draw_rails(Tracked& tracked) {
  const Pairing& pairing = world_.network.pairing(tracked.pairing);
  const auto& rails = world_.network.rails(pairing.process[0], pairing.process[1]);
  if (world_.random.chance(0.2)) {
    tracked.excuses |= kForbidden;
    tracked.unreachable = true;
    return rail_bit(RailKind::CudaIpc);
  }
  const Rail& rail = rails[0];
  return static_cast<RailKinds>(rail_bit(rail.kind) | rail_bit(RailKind::Tcp));
}

void Workload::cancel(std::uint32_t number) {
  Tracked& tracked = world_.ledger.at(number);
  Process& process = *world_.processes[tracked.process];
  if (tracked.ended || !process.runs() || process.generation() != tracked.generation) return;
  tracked.cancel_asked = true;
  tracked.stop_asked = std::min(tracked.stop_asked, world_.now());
  tracked.excuses |= kOwnEnd;
  const TransferId id = tracked.id;
  world_.log("cancel", process.index(), number);
  process.call([&](Node& node, TimeNs now) { node.cancel(id, Code::Cancelled, now); });
}

void Workload::after_end(const Tracked& tracked) {
  if (world_.now() > world_.profile.fault_time || follow_ups_ >= kFollowUpsMax) return;
  if (tracked.code != Code::Ok && world_.random.chance(0.5)) return;
  if (!world_.random.chance(world_.profile.follow_up)) return;
  ++follow_ups_;  // at once: it gets the memory that has just become free
  world_.coverage.mark(Seen::ReusedAtOnce);
  world_.timeline.plan(world_.now(), EventKind::Operate, 0);
}

void Workload::one_sided(Request::Op op, bool cache, bool forbidden) {
  std::uint32_t from = 0, owner = 0, index = 0;
  if (!draw_pair(from, owner, index)) return;
  Tracked tracked;
  Request request;
  if (!draw_one_sided(world_, op, cache, from, owner, draw_bytes(), tracked, request)) return;
  if (forbidden) forbid(world_, tracked, request);
  const Pairing& pairing = world_.network.pairing(index);
  tracked.pairing = index;
  request.peer = pairing.peer[pairing.process[0] == from ? 0 : 1];
  if (request.has_note) request.note = std::to_string(world_.ledger.size()) + request.note;
  submit(std::move(tracked), std::move(request), true);
}

// ---- messages ----------------------------------------------------------------------------------

void Workload::plan_message(Message message, bool send, bool recv) {
  messages_.push_back(message);
  const auto index = messages_.size() - 1;
  const TimeNs now = world_.now();
  const TimeNs apart = world_.random.chance(0.3) ? 0 : 3000;
  if (send) {
    world_.timeline.plan(now + world_.random.between(0, apart) * kMicrosecond, EventKind::Post,
                         index, 0);
  }
  if (recv) {
    world_.timeline.plan(now + world_.random.between(0, apart) * kMicrosecond, EventKind::Post,
                         index, 1);
  }
}

void Workload::message(bool send, bool recv, bool mismatched) {
  Message message;
  if (!draw_pair(message.from, message.to, message.pairing)) return;
  message.tag = next_tag_++;
  const std::uint64_t bytes = draw_bytes();
  message.bytes = {bytes, bytes};
  message.mismatched = mismatched;
  if (mismatched && world_.random.chance(0.5)) {
    message.meta = {1, 2};
  } else if (mismatched) {
    message.bytes[world_.random.below(2)] += 64;
  } else if (world_.random.chance(0.3)) {
    message.meta = {3, world_.random.chance(0.5) ? 3u : 0u};
  }
  plan_message(message, send, recv);
}

void Workload::in_order() {
  Message message;
  if (!draw_pair(message.from, message.to, message.pairing)) return;
  message.tag = next_tag_++;
  message.in_order = true;
  const std::uint64_t count = 2 + world_.random.below(4);
  const std::uint64_t bytes = draw_bytes();
  message.bytes = {bytes, bytes};
  for (std::uint64_t i = 0; i < count; ++i) plan_message(message, true, true);
}

void Workload::any_source() {
  Message message;
  if (!draw_pair(message.from, message.to, message.pairing)) return;
  message.tag = next_tag_++;
  message.any_source = true;
  const std::uint64_t bytes = std::max<std::uint64_t>(draw_bytes(), 8);
  message.bytes = {bytes, bytes};
  plan_message(message, true, true);
  const std::uint32_t to = message.to;
  if (draw_pair(message.from, message.to, message.pairing) && message.to == to) {
    plan_message(message, true, true);
  }
}

void Workload::post(std::uint32_t index, int side) {
  const Message message = messages_[index];
  const bool send = side == 0;
  const std::uint32_t process = send ? message.from : message.to;
  const Pairing& pairing = world_.network.pairing(message.pairing);
  const std::size_t end = pairing.process[0] == process ? 0 : 1;
  if (!world_.processes[process]->runs() ||
      world_.processes[process]->generation() != pairing.generation[end]) {
    return;
  }
  Tracked tracked;
  std::uint64_t bytes = message.bytes[std::size_t(side)];
  if (message.in_order) {  // each place in the order has its own size, so that some go inline
    if (ordinals_.size() <= message.tag) ordinals_.resize(message.tag + 1);
    tracked.ordinal = ordinals_[message.tag][std::size_t(side)];
    bytes = tracked.ordinal % 3 == 1 ? bytes / 16 : tracked.ordinal % 3 == 2 ? 1 : bytes;
  }
  if (!take_local(process, bytes, tracked)) return;
  if (message.in_order) ++ordinals_[message.tag][std::size_t(side)];
  tracked.op = send ? Request::Op::Send : Request::Op::Recv;
  tracked.tag = message.tag;
  const bool any = message.any_source && !send;
  if (!any) tracked.pairing = message.pairing;
  if (message.mismatched) tracked.excuses |= kMismatched;
  tracked.pattern = world_.random.next();
  if (send) fill(tracked.local, tracked.pattern);
  Request request;
  request.peer = any ? kAnyPeer : pairing.peer[end];
  request.context = kContext;
  request.tag = message.tag;
  request.meta = message.meta[std::size_t(side)];
  submit(std::move(tracked), std::move(request), !message.in_order && !message.any_source);
}

}  // namespace tent::sim
