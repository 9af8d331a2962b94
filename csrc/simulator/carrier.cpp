// Stage: tests. See carrier.h.
#include "simulator/carrier.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "simulator/world.h"

namespace tent::sim {
namespace {

std::uint8_t* memory(std::uint64_t address) { return reinterpret_cast<std::uint8_t*>(address); }

bool numbered(const Parcel& parcel) { return parcel.frame.header.kind != FrameKind::Ack; }

// Whether this kind of mischief can be played on the frame, so that it must be noticed.
bool fits(Mischief mischief, const Parcel& parcel) {
  const FrameHeader& header = parcel.frame.header;
  switch (mischief) {
    case Mischief::Double:
    case Mischief::Swap:
    case Mischief::Sequence:
      return numbered(parcel);
    case Mischief::Offset:
      return header.kind == FrameKind::Slice;
    case Mischief::Body:
      return parcel.frame.body != nullptr && !parcel.frame.body->empty();
    case Mischief::Payload:
      return header.kind == FrameKind::Slice && header.flags & kHasCrc && header.body_bytes != 0;
    default:
      return true;
  }
}

}  // namespace

void Carrier::post(std::uint32_t process, LinkId id, Frame frame) {
  Link* link = world_.network.find_link(id);
  if (link == nullptr) return world_.fail("a Node posts on a link that never was");
  const int end = world_.network.end_of(*link, process);
  const FrameHeader& header = frame.header;
  world_.log("post", link->index, end, int(header.kind), header.sequence, header.flow,
             header.offset, header.body_bytes);
  if (!link->open(end)) return world_.fail("a Node posts on a link that it was told is closed");
  if (!well_formed(header)) return world_.fail("a Node posts a malformed header");
  const bool has_body = header.kind == FrameKind::Control || header.kind == FrameKind::Open;
  if (has_body != (frame.body != nullptr) ||
      (has_body && frame.body->size() != header.body_bytes)) {
    return world_.fail("a Node posts a frame whose body is not what its header says");
  }
  Pairing& pairing = world_.network.pairing(link->pairing);
  TimeNs& since = pairing.waits_since[std::size_t(end)];
  if (since == kNever) since = world_.now();
  if (header.kind == FrameKind::Open) {
    Opening opening;
    if (!decode(std::span(*frame.body), opening)) return world_.fail("a Node posts a bad opening");
    if (opening.kind == Opening::Kind::ReadReply) {
      world_.ledger.learn_answer(link->pairing, end, header.flow, opening.request);
    }
  }
  if (header.kind == FrameKind::Slice) check_fenced(*link, end, header);
  Parcel parcel;
  parcel.offset = header.offset;
  parcel.frame = std::move(frame);
  link->pipe[std::size_t(end)].parcels.push(std::move(parcel));
  posted_.emplace_back(link, end);
}

// A slice goes out again only when no byte of its first journey can land any more. A twin may go
// beside it while that link is well at its end, if both ask the receiver before every byte.
void Carrier::check_fenced(Link& link, int end, const FrameHeader& header) {
  const auto e = std::size_t(end);
  const auto asks = [this](Link& one) { return !world_.network.rail(one).places_by_itself; };
  for (std::uint32_t index : world_.network.pairing(link.pairing).links) {
    Link& other = *world_.network.links()[index];
    if (&other == &link || other.state[1 - e] == Link::State::Closed) continue;
    if (other.open(end) && asks(other) && asks(link)) continue;
    const Pipe& pipe = other.pipe[e];
    for (std::size_t i = 0; i < pipe.parcels.size(); ++i) {
      const FrameHeader& before = pipe.parcels[i].frame.header;
      if (before.kind == FrameKind::Slice && before.flow == header.flow &&
          before.offset < header.offset + header.body_bytes &&
          header.offset < before.offset + before.body_bytes) {
        return world_.fail("P1: a slice is sent again while its first journey is not fenced");
      }
    }
  }
}

void Carrier::pump_posted() {
  while (!posted_.empty()) {
    const auto posted = std::exchange(posted_, {});
    for (const auto& [link, end] : posted) pump(*link, end);
  }
}

void Carrier::pump(Link& link, int end) {
  const Pairing& pairing = world_.network.pairing(link.pairing);
  if (!link.open(end) || !world_.processes[pairing.process[std::size_t(end)]]->runs()) return;
  Pipe& pipe = link.pipe[std::size_t(end)];
  const std::uint64_t room = world_.network.rail(link).buffer_bytes;
  while (pipe.sending < pipe.parcels.size() && pipe.in_flight < room) {
    if (!send_chunk(link, end)) break;
  }
  plan_arrival(link, end);
}

bool Carrier::send_chunk(Link& link, int end) {
  Pipe& pipe = link.pipe[std::size_t(end)];
  const Rail& rail = world_.network.rail(link);
  if (!pipe.parcels[pipe.sending].started) spoil(link, pipe);
  Parcel& parcel = pipe.parcels[pipe.sending];
  const FrameHeader& header = parcel.frame.header;
  const bool slice = header.kind == FrameKind::Slice;
  Chunk chunk;
  chunk.first = !parcel.started;
  chunk.from = parcel.sent;
  chunk.bytes = slice ? header.body_bytes - parcel.sent : 0;
  TimeNs pause = 0;
  if (slice && chunk.bytes > 1 && world_.random.chance(world_.profile.tear)) {
    chunk.bytes = world_.random.below(chunk.bytes);
    if (world_.random.chance(0.3)) pause = world_.random.between(1, 3000) * kMicrosecond;
    world_.coverage.mark(Seen::TornSlice);
  }
  if (slice) load(link, end, parcel, chunk);
  parcel.started = true;
  parcel.sent += chunk.bytes;
  chunk.last = !slice || parcel.sent == header.body_bytes;
  chunk.cost =
      chunk.bytes + (chunk.first ? sizeof(FrameHeader) : 0) + (slice ? 0 : header.body_bytes);
  if (chunk.last) ++pipe.sending;
  const double slower = rail.slow_until > world_.now() ? 100 : 1;
  pipe.free_at = std::max(world_.now(), pipe.free_at) +
                 static_cast<TimeNs>(static_cast<double>(chunk.cost) * rail.ns_per_byte * slower);
  const TimeNs jitter =
      rail.jitter == 0 ? 0 : static_cast<TimeNs>(world_.random.below(std::uint64_t(rail.jitter)));
  chunk.at = std::max(pipe.free_at + rail.latency + jitter, pipe.last_at + 1);
  pipe.free_at += pause;
  pipe.last_at = chunk.at;
  pipe.in_flight += chunk.cost;
  pipe.chunks.push(chunk);
  return pause == 0;
}

// The source is asked for, and read, at the moment the bytes leave.
void Carrier::load(Link& link, int end, Parcel& parcel, Chunk& chunk) {
  const Pairing& pairing = world_.network.pairing(link.pairing);
  Process& process = *world_.processes[pairing.process[std::size_t(end)]];
  const FrameHeader& header = parcel.frame.header;
  const std::uint64_t offset = parcel.offset + chunk.from;
  const bool described = world_.network.on_one_host(link);
  if (described && !chunk.first) return;  // the reader has its addresses already
  const std::uint64_t bytes = described ? header.body_bytes : chunk.bytes;
  pieces_.clear();
  const bool given = process.node().source(header.flow, offset, bytes, pieces_);
  if (given && bytes != 0) {
    world_.ledger.may_read(process.index(), header.flow, offset, bytes, pieces_);
  }
  if (!given) world_.coverage.mark(Seen::FillerSent);
  if (described) {
    parcel.source = given ? pieces_ : Pieces{};
    return;
  }
  parcel.payload.resize(header.body_bytes);
  std::uint8_t* out = parcel.payload.data() + chunk.from;
  if (!given) {
    std::memset(out, 0xee, bytes);
  } else {
    for (const Piece& piece : pieces_) {
      std::memcpy(out, memory(piece.address), piece.bytes);
      out += piece.bytes;
    }
  }
  if (parcel.mischief == Mischief::Payload && chunk.bytes != 0) {
    parcel.payload[chunk.from + world_.random.below(chunk.bytes)] ^= 0x10;
  }
}

// Plays the planned mischief on the frame that is about to be sent.
void Carrier::spoil(Link& link, Pipe& pipe) {
  const std::size_t i = pipe.sending;
  const Mischief mischief = pipe.mischief;
  if (mischief == Mischief::None || pipe.parcels[i].mischief != Mischief::None ||
      !fits(mischief, pipe.parcels[i])) {
    return;
  }
  if (mischief == Mischief::Swap) {
    if (i + 1 >= pipe.parcels.size() || !numbered(pipe.parcels[i + 1])) return;
    std::swap(pipe.parcels[i], pipe.parcels[i + 1]);
  }
  if (mischief == Mischief::Payload && world_.network.on_one_host(link)) return;
  pipe.mischief = Mischief::None;
  FrameHeader& header = pipe.parcels[i].frame.header;
  world_.log("spoil", link.index, int(mischief), header.sequence);
  if (mischief == Mischief::Double) {
    Parcel twin = pipe.parcels[i];
    twin.mischief = mischief;
    pipe.parcels.insert(i + 1, std::move(twin));
    return;
  }
  pipe.parcels[i].mischief = mischief;
  if (mischief == Mischief::Magic) header.magic ^= 1u << world_.random.below(32);
  if (mischief == Mischief::Kind) header.kind = static_cast<FrameKind>(world_.random.below(2) * 99);
  if (mischief == Mischief::Sequence) header.sequence += world_.random.chance(0.5) ? 1 : -1;
  if (mischief == Mischief::Ack) header.ack += 1'000'000;
  if (mischief == Mischief::Offset) header.offset = world_.random.next() | 1ull << 62;
  if (mischief == Mischief::Body) {
    auto body = std::make_shared<Body>(*pipe.parcels[i].frame.body);
    if (world_.random.chance(0.5)) {
      body->pop_back();
    } else {
      body->push_back(0);
    }
    header.body_bytes = static_cast<std::uint32_t>(body->size());
    pipe.parcels[i].frame.body = std::move(body);
  }
}

void Carrier::plan_arrival(Link& link, int sender) {
  Pipe& pipe = link.pipe[std::size_t(sender)];
  if (pipe.arrival_planned || pipe.chunks.empty() || pipe.held_until == kNever) return;
  pipe.arrival_planned = true;
  world_.timeline.plan(std::max(pipe.chunks.front().at, pipe.held_until), EventKind::Arrive,
                       link.index, std::uint64_t(sender));
}

}  // namespace tent::sim
