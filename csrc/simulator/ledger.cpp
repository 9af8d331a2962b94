// Stage: tests. See ledger.h.
#include "simulator/ledger.h"

#include <algorithm>
#include <cstdlib>

#include "simulator/verdict.h"
#include "simulator/world.h"

namespace tent::sim {
namespace {

// How long a Node waits for the answer to a cancel before it cuts the peer off.
constexpr TimeNs kPatience = 249 * kMillisecond;

const char* op_name(Request::Op op) {
  switch (op) {
    case Request::Op::Send:
      return "send";
    case Request::Op::Recv:
      return "recv";
    case Request::Op::Write:
      return "write";
    case Request::Op::Read:
      return "read";
  }
  return "?";
}

bool meets(const std::vector<std::uint32_t>& a, const std::vector<std::uint32_t>& b) {
  return std::any_of(a.begin(), a.end(), [&](std::uint32_t unit) {
    return std::find(b.begin(), b.end(), unit) != b.end();
  });
}

}  // namespace

std::string describe(const Tracked& t) {
  return std::string(op_name(t.op)) + " #" + std::to_string(t.number) + " (process " +
         std::to_string(t.process) + ", id " + std::to_string(t.id) + ", " +
         std::to_string(t.bytes) + " bytes)";
}

Ledger::Key Ledger::key(std::uint32_t process, std::uint32_t generation, std::uint64_t id) {
  // Transfer ids are small; flow ids have their peer, also small, above bit 40.
  return Key{process} << 61 | Key{generation & 0xff} << 53 | (id & ((Key{1} << 53) - 1));
}

Tracked* Ledger::flow(std::uint32_t process, std::uint32_t generation, TransferId id) {
  const auto found = flows_.find(key(process, generation, id));
  return found == flows_.end() ? nullptr : &all_[found->second];
}

// The flow of a send or write is known by the memory that it reads first: only one live transfer of
// the process has it.
Tracked* Ledger::learn_flow(std::uint32_t process, TransferId id, const Pieces& source) {
  const std::uint32_t generation = world_.processes[process]->generation();
  if (Tracked* known = flow(process, generation, id)) return known;
  const std::uint64_t address = source.empty() ? 0 : source.front().address;
  for (Tracked& t : all_) {
    if (t.ended || t.process != process || t.op == Request::Op::Recv) continue;
    if (address < t.span || address >= t.span + t.span_bytes) continue;
    flows_.emplace(key(process, generation, id), t.number);
    return &t;
  }
  return nullptr;
}

Tracked* Ledger::find(std::uint32_t process, TransferId id) {
  const auto found = numbers_.find(key(process, world_.processes[process]->generation(), id));
  return found == numbers_.end() ? nullptr : &all_[found->second];
}

void Ledger::fail(const Tracked& tracked, const std::string& why) {
  world_.fail(describe(tracked) + ": " + why);
}

Tracked& Ledger::add(Tracked tracked) {
  tracked.number = size();
  numbers_.emplace(key(tracked.process, tracked.generation, tracked.id), tracked.number);
  if (tracked.op == Request::Op::Send || tracked.op == Request::Op::Recv) {
    if (by_tag_.size() <= tracked.tag) by_tag_.resize(tracked.tag + 1);
    by_tag_[tracked.tag].push_back(tracked.number);
  }
  ++live_;
  if (tracked.pairing != kNone) ++world_.network.pairing(tracked.pairing).live;
  all_.push_back(std::move(tracked));
  return all_.back();
}

void Ledger::withdraw(std::uint32_t owner, std::uint32_t exported,
                      const std::vector<std::uint32_t>* units) {
  for (Tracked& t : all_) {
    if (!t.remote_open || t.owner != owner || t.exported != exported) continue;
    if (units != nullptr && !meets(t.units, *units)) continue;
    t.excuses |= kWithdrawn;
    if (!t.ended) world_.coverage.mark(units == nullptr ? Seen::ClosedLive : Seen::RevokedLive);
    if (t.op == Request::Op::Write) release_remote(t);
  }
}

void Ledger::release_withdrawn(std::uint32_t owner, std::uint32_t exported) {
  for (Tracked& t : all_) {
    if (t.remote_open && t.owner == owner && t.exported == exported && t.excuses & kWithdrawn) {
      release_remote(t);
    }
  }
}

std::uint32_t Ledger::waiting_withdrawn(std::uint32_t owner, std::uint32_t exported) const {
  return static_cast<std::uint32_t>(std::count_if(all_.begin(), all_.end(), [&](const Tracked& t) {
    return t.remote_open && t.owner == owner && t.exported == exported && t.excuses & kWithdrawn;
  }));
}

void Ledger::ended(std::uint32_t process, const Report& report) {
  Tracked* found = find(process, report.id);
  if (found == nullptr) {
    return world_.fail("the end of a transfer that nobody asked for: " + std::to_string(report.id));
  }
  Tracked& t = *found;
  world_.log("ended", process, t.number, int(report.status.code), report.retries, report.fences);
  world_.journal.remark(world_.now(), "  " + describe(t) + ": " + report.status.text);
  if (t.ended) return fail(t, "ended twice");
  if (report.ended < report.started) fail(t, "ended before it started");
  t.code = report.status.code;
  close_account(t);
  check_end(world_, t, report);
  release_local(t);
  if (t.remote_open) {
    const Pairing& pairing = world_.network.pairing(t.pairing);
    const bool given_up = pairing.lost[pairing.process[0] == process ? 0 : 1];
    const bool unanswered = t.stop_asked != kNever && world_.now() - t.stop_asked >= kPatience;
    // Out of reach, the peer's memory stays open until the peer has given us up as well, or takes
    // it back. What the owner himself withdrew is his until his Node says that nobody copies it any
    // more.
    const bool withdrawn = (t.excuses & kWithdrawn) != 0;
    if (unanswered && !given_up) world_.coverage.mark(Seen::CancelUnanswered);
    if (!given_up && !unanswered && !withdrawn) release_remote(t);
  }
  world_.workload.after_end(t);
}

void Ledger::close_account(Tracked& t) {
  t.ended = true;
  --live_;
  if (t.pairing != kNone) --world_.network.pairing(t.pairing).live;
}

void Ledger::release_local(Tracked& t) {
  if (t.span == 0) return;
  poison(t.local);
  if (!world_.processes[t.process]->arena.give_back(t.span, t.span_bytes)) {
    fail(t, "P1: bytes beside its own memory were written");
  }
  t.span = 0;
}

void Ledger::release_remote(Tracked& t) {
  Exported& exported = world_.processes[t.owner]->exported[t.exported];
  t.remote_open = false;
  poison(t.remote);
  if (!exported.units_poisoned(t.units)) fail(t, "P1: bytes beside its target were written");
  exported.poison_units(t.units);
  for (std::uint32_t unit : t.units) exported.busy[unit] = 0;
}

void Ledger::noted(std::uint32_t process, const Notification& note) {
  const std::uint32_t number =
      static_cast<std::uint32_t>(std::strtoul(note.payload.c_str(), nullptr, 10));
  world_.log("noted", process, number);
  if (number >= all_.size() || !all_[number].has_note || all_[number].owner != process) {
    return world_.fail("P3: a notification that nobody sent: " + note.payload);
  }
  Tracked& t = all_[number];
  world_.coverage.mark(Seen::NoteSeen);
  const Pairing& pairing = world_.network.pairing(t.pairing);
  const int end = pairing.process[0] == process ? 0 : 1;
  if (note.peer != pairing.peer[std::size_t(end)])
    fail(t, "P3: its notification names another peer");
  if (++t.notes_seen > 1) return fail(t, "P3: notified twice");
  if (!t.remote_open) return fail(t, "P3: notified after its end");
  if (!holds(t.remote, t.pattern)) fail(t, "P3: notified before its bytes were in place");
}

void Ledger::session_lost(std::uint32_t index, int end) {
  const Pairing& pairing = world_.network.pairing(index);
  for (Tracked& t : all_) {
    if (t.remote_open && t.pairing == index && t.owner == pairing.process[std::size_t(end)]) {
      release_remote(t);
    }
  }
}

void Ledger::process_died(std::uint32_t process) {
  for (Tracked& t : all_) {
    if (t.process == process && !t.ended) {
      t.dead = true;
      t.span = 0;
      close_account(t);
    }
    if (t.owner == process) t.remote_open = false;
  }
}

void Ledger::learn_answer(std::uint32_t index, int end, TransferId id, TransferId request) {
  const Pairing& pairing = world_.network.pairing(index);
  const auto reader = numbers_.find(key(pairing.process[std::size_t(1 - end)],
                                        pairing.generation[std::size_t(1 - end)], request));
  if (reader == numbers_.end() || all_[reader->second].op != Request::Op::Read) {
    return world_.fail("an answer to a read that nobody asked for: " + std::to_string(request));
  }
  flows_.emplace(key(pairing.process[std::size_t(end)], pairing.generation[std::size_t(end)], id),
                 reader->second);
}

bool Ledger::may_land(std::uint32_t index, int sender, TransferId id, std::uint64_t offset,
                      std::uint64_t length, const Pieces& pieces) {
  const Pairing& pairing = world_.network.pairing(index);
  const std::uint32_t receiver = pairing.process[std::size_t(1 - sender)];
  Tracked* t =
      flow(pairing.process[std::size_t(sender)], pairing.generation[std::size_t(sender)], id);
  if (t == nullptr) {
    world_.fail("P1: bytes land for a flow that nobody made: " + std::to_string(id));
    return false;
  }
  const Layout* destination = &t->remote;
  bool open = t->remote_open;
  if (t->op == Request::Op::Read) {
    destination = &t->local;
    open = !t->ended && t->process == receiver;
  } else if (t->op == Request::Op::Send) {
    Tracked* recv = bind(*t, receiver, pieces);
    if (recv == nullptr) return false;
    destination = &recv->local;
    // Its memory is the receive's; but a send whose end both agreed on has nothing to move.
    open = !recv->ended && (!t->ended || t->dead || pairing.lost[std::size_t(sender)]);
  }
  if (!open) {
    fail(*t, "P1: bytes land after its end");
    return false;
  }
  expected_.clear();
  if (offset <= t->bytes && length <= t->bytes - offset) {
    destination->pieces(offset, length, expected_);
  }
  const bool same = std::equal(
      expected_.begin(), expected_.end(), pieces.begin(), pieces.end(),
      [](const Piece& a, const Piece& b) { return a.address == b.address && a.bytes == b.bytes; });
  if (!same) fail(*t, "P2: bytes land in the wrong place");
  return same;
}

bool Ledger::may_read(std::uint32_t process, TransferId id, std::uint64_t offset,
                      std::uint64_t length, const Pieces& pieces) {
  Tracked* t = learn_flow(process, id, pieces);
  if (t == nullptr) {
    world_.fail("P1: memory is read that is no live transfer's: flow " + std::to_string(id));
    return false;
  }
  const bool answer = t->op == Request::Op::Read;
  // A read that has succeeded is only then said to be done: until the owner hears of it, it may
  // send again what it does not know to have arrived. The reader drops it.
  if (answer && t->ended && t->code == Code::Ok) return true;
  const bool open = answer ? t->remote_open : !t->ended;
  if (!open) {
    fail(*t, "P1: its source is read after its end");
    return false;
  }
  expected_.clear();
  if (offset <= t->bytes && length <= t->bytes - offset) {
    (answer ? t->remote : t->local).pieces(offset, length, expected_);
  }
  const bool same = std::equal(
      expected_.begin(), expected_.end(), pieces.begin(), pieces.end(),
      [](const Piece& a, const Piece& b) { return a.address == b.address && a.bytes == b.bytes; });
  if (!same) fail(*t, "P2: the wrong memory is read");
  return same;
}

Tracked* Ledger::bind(Tracked& send, std::uint32_t receiver, const Pieces& pieces) {
  if (send.match != kNone) return &all_[send.match];
  for (std::uint32_t number : by_tag_[send.tag]) {
    Tracked& recv = all_[number];
    if (recv.op != Request::Op::Recv || recv.process != receiver || recv.ended) continue;
    const std::uint64_t address = pieces.empty() ? 0 : pieces.front().address;
    if (address < recv.span || address >= recv.span + recv.span_bytes) continue;
    if (recv.match != kNone) {
      fail(send, "P2: lands in the memory of a receive that has another send");
      return nullptr;
    }
    if (recv.ordinal != send.ordinal) fail(send, "matched out of order");
    send.match = recv.number;
    recv.match = send.number;
    return &recv;
  }
  fail(send, "P1: lands in memory that is no live receive's");
  return nullptr;
}

}  // namespace tent::sim
