// Stage: tests. See verdict.h.
#include "simulator/verdict.h"

#include <algorithm>

#include "simulator/world.h"

namespace tent::sim {
namespace {

using Op = Request::Op;

std::uint64_t inline_max(const World& world) { return world.profile.settings.inline_bytes_max; }

bool is_message(const Tracked& t) { return t.op == Op::Send || t.op == Op::Recv; }

// The send that filled this receive: known from its slices; for one that came inline, the one whose
// turn it was.
Tracked* find_send(World& world, const Tracked& recv, PeerId from) {
  if (recv.match != kNone) return &world.ledger.at(recv.match);
  int end = 0;
  const std::uint32_t pairing = world.network.find_pairing(recv.process, from, &end);
  for (std::uint32_t number : world.ledger.with_tag(recv.tag)) {
    Tracked& send = world.ledger.at(number);
    if (send.op != Op::Send || send.match != kNone || send.pairing != pairing) continue;
    if (send.bytes != recv.bytes || send.process == recv.process) continue;
    if (recv.ordinal != send.ordinal || !holds(recv.local, send.pattern)) continue;
    return &send;
  }
  return nullptr;
}

void check_recv(World& world, Tracked& recv, const Report& report) {
  Tracked* send = find_send(world, recv, report.peer);
  if (send == nullptr) return world.ledger.fail(recv, "P2: done, but no send was for it");
  recv.match = send->number;
  send->match = recv.number;
  if (send->bytes != recv.bytes || !holds(recv.local, send->pattern)) {
    world.ledger.fail(recv, "P3: done before its bytes were in place");
  }
  const Pairing& pairing = world.network.pairing(send->pairing);
  const int end = pairing.process[0] == recv.process ? 0 : 1;
  if (report.peer != pairing.peer[std::size_t(end)]) {
    world.ledger.fail(recv, "its report names another peer than the sender");
  }
  if (recv.pairing == kNone) world.coverage.mark(Seen::AnySourceDone);
  if (recv.ordinal != kNone) world.coverage.mark(Seen::InOrderDone);
}

void check_sent(World& world, const Tracked& send) {
  if (send.match == kNone) {
    // An inline send succeeds when it has arrived; its receive may come later.
    if (send.bytes > inline_max(world)) {
      world.ledger.fail(send, "P2: done, but none of its bytes landed");
    }
    return;
  }
  const Tracked& recv = world.ledger.at(send.match);
  if (recv.dead) return;
  if (recv.ended && recv.code != Code::Ok) {
    world.ledger.fail(send, "P2: done, but its receive failed");
  }
  if (!recv.ended && !holds(recv.local, send.pattern)) {
    world.ledger.fail(send, "P2: done, but its bytes are not in place");
  }
}

void check_write(World& world, const Tracked& write) {
  if (!write.remote_open) return;  // the owner took it back, or is gone
  if (!holds(write.remote, write.pattern)) {
    world.ledger.fail(write, "P2: done, but its bytes are not in place");
  }
  if (write.has_note && write.notes_seen != 1) {
    world.ledger.fail(write, "P3: done, but the notification was not seen");
  }
}

void check_success(World& world, Tracked& t, const Report& report) {
  if (report.bytes != t.bytes) world.ledger.fail(t, "P7: its report has another number of bytes");
  if (t.excuses & kForbidden) world.ledger.fail(t, "P6: done, though it was forbidden");
  // A send that went inline does not learn what its receive made of it.
  if (t.excuses & kMismatched && (t.op != Op::Send || t.bytes > inline_max(world))) {
    world.ledger.fail(t, "done, though the two halves disagree");
  }
  switch (t.op) {
    case Op::Send:
      check_sent(world, t);
      world.coverage.mark(Seen::SendDone);
      break;
    case Op::Recv:
      check_recv(world, t, report);
      world.coverage.mark(Seen::RecvDone);
      break;
    case Op::Write:
      check_write(world, t);
      world.coverage.mark(Seen::WriteDone);
      break;
    case Op::Read:
      if (!holds(t.local, t.pattern)) {
        world.ledger.fail(t, "P2: done, but its bytes are not in place");
      }
      world.coverage.mark(Seen::ReadDone);
      break;
  }
  if (t.bytes == 0) world.coverage.mark(Seen::EmptyDone);
  if (t.scattered) world.coverage.mark(Seen::ScatteredDone);
  if (report.retries != 0) world.coverage.mark(Seen::Resent);
  if (report.twins != 0) world.coverage.mark(Seen::Doubled);
  if (report.fences != 0) world.coverage.mark(Seen::HealedWithoutError);
}

void mark_failure(World& world, const Tracked& t) {
  switch (t.code) {
    case Code::Cancelled:
      return world.coverage.mark(Seen::Cancelled);
    case Code::Timeout:
      return world.coverage.mark(Seen::TimedOut);
    case Code::PeerLost:
      return world.coverage.mark(Seen::PeerLost);
    case Code::Mismatch:
      return world.coverage.mark(Seen::MismatchRefused);
    case Code::Unreachable:
      return world.coverage.mark(Seen::UnreachableRefused);
    case Code::Access:
      return world.coverage.mark(t.excuses & kWithdrawn ? Seen::StaleRefused : Seen::AccessRefused);
    default:
      return;
  }
}

bool lost(World& world, std::uint32_t pairing_index, std::uint32_t process) {
  const Pairing& pairing = world.network.pairing(pairing_index);
  return pairing.lost[pairing.process[0] == process ? 0 : 1];
}

// Whether its process gave up the peer, or, of a receive from any source, one that may have
// matched.
bool given_up(World& world, const Tracked& t) {
  if (t.pairing != kNone) return lost(world, t.pairing, t.process);
  const auto& numbers = world.ledger.with_tag(t.tag);
  return std::any_of(numbers.begin(), numbers.end(), [&](std::uint32_t number) {
    const Tracked& other = world.ledger.at(number);
    return other.op == Op::Send && lost(world, other.pairing, t.process);
  });
}

// Whether something with its tag ended so that this half of a message could not succeed.
bool other_half_failed(World& world, const Tracked& t) {
  if (!is_message(t)) return false;
  const auto& numbers = world.ledger.with_tag(t.tag);
  return std::any_of(numbers.begin(), numbers.end(), [&](std::uint32_t number) {
    const Tracked& other = world.ledger.at(number);
    return other.op != t.op && (other.dead || other.code != Code::Ok);
  });
}

bool has_reason(World& world, const Tracked& t) {
  switch (t.code) {
    case Code::Ok:
      return true;
    case Code::PeerLost:
      return given_up(world, t);
    case Code::Access:
      return (t.excuses & (kForbidden | kWithdrawn)) != 0;
    case Code::Unreachable:
      return (t.excuses & kForbidden) != 0;
    case Code::Mismatch:
      return (t.excuses & kMismatched) != 0;
    case Code::Timeout:
      return t.expires != kNever || other_half_failed(world, t);
    case Code::Cancelled:
      return t.cancel_asked || other_half_failed(world, t);
    case Code::Failed:
      return other_half_failed(world, t);
  }
  return false;
}

}  // namespace

void check_end(World& world, Tracked& tracked, const Report& report) {
  if (report.status.ok()) {
    check_success(world, tracked, report);
  } else {
    mark_failure(world, tracked);
  }
}

bool must_end(World& world, const Tracked& t) {
  if (!is_message(t)) return true;
  if (t.pairing != kNone && !world.network.current(world.network.pairing(t.pairing))) return true;
  const auto& numbers = world.ledger.with_tag(t.tag);
  return std::any_of(numbers.begin(), numbers.end(), [&](std::uint32_t number) {
    const Tracked& other = world.ledger.at(number);
    if (other.op == t.op || other.ended) return false;
    if (t.pairing == kNone || other.pairing == kNone) {
      const Tracked& send = t.op == Op::Send ? t : other;
      return world.network.current(world.network.pairing(send.pairing));
    }
    return t.pairing == other.pairing;
  });
}

void check_reasons(World& world) {
  for (std::uint32_t i = 0; i < world.ledger.size(); ++i) {
    const Tracked& t = world.ledger.at(i);
    if (!t.ended) world.ledger.fail(t, "P5: it never ended");
    if (!t.dead && !has_reason(world, t)) {
      world.ledger.fail(
          t, "P4: failed with code " + std::to_string(int(t.code)) + " without a reason");
    }
  }
}

}  // namespace tent::sim
