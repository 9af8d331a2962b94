// Stage: tests. See reader.h.
#include "simulator/reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "simulator/world.h"

namespace tent::sim {
namespace {

std::uint8_t* memory(std::uint64_t address) { return reinterpret_cast<std::uint8_t*>(address); }

// The part [from, from + bytes) of the line of bytes that `pieces` are.
void cut(const Pieces& pieces, std::uint64_t from, std::uint64_t bytes, Pieces& out) {
  out.clear();
  for (const Piece& piece : pieces) {
    if (bytes == 0) return;
    if (from >= piece.bytes) {
      from -= piece.bytes;
      continue;
    }
    const std::uint64_t length = std::min(bytes, piece.bytes - from);
    out.push_back({piece.address + from, length});
    bytes -= length;
    from = 0;
  }
}

Seen seen(Mischief mischief) {
  switch (mischief) {
    case Mischief::Double:
      return Seen::DuplicateRefused;
    case Mischief::Swap:
    case Mischief::Sequence:
      return Seen::ReorderRefused;
    case Mischief::Ack:
      return Seen::AckRefused;
    case Mischief::Offset:
      return Seen::RangeRefused;
    case Mischief::Body:
      return Seen::BodyRefused;
    case Mischief::Payload:
      return Seen::PayloadRefused;
    default:
      return Seen::HeaderRefused;
  }
}

}  // namespace

void Reader::arrive(Link& link, int sender) {
  Pipe& pipe = link.pipe[std::size_t(sender)];
  pipe.arrival_planned = false;
  const int end = 1 - sender;
  const Pairing& pairing = world_.network.pairing(link.pairing);
  if (!link.open(end) || !world_.processes[pairing.process[std::size_t(end)]]->runs()) return;
  if (pipe.held_until <= world_.now()) read_all(link, end);
  world_.carrier.plan_arrival(link, sender);
}

void Reader::read_all(Link& link, int end) {
  const int sender = 1 - end;
  Pipe& pipe = link.pipe[std::size_t(sender)];
  bool any = false;
  while (link.open(end) && !pipe.chunks.empty() && pipe.chunks.front().at <= world_.now() &&
         pipe.held_until <= world_.now() && !world_.journal.failed()) {
    read_chunk(link, end);
    any = true;
  }
  if (any) world_.carrier.pump(link, sender);  // there is room again
  world_.carrier.plan_arrival(link, sender);
}

void Reader::read_chunk(Link& link, int end) {
  Pipe& pipe = link.pipe[std::size_t(1 - end)];
  const Chunk chunk = pipe.chunks.pop();
  pipe.in_flight -= chunk.cost;
  Pairing& pairing = world_.network.pairing(link.pairing);
  Process& process = *world_.processes[pairing.process[std::size_t(end)]];
  if (chunk.first && pipe.parcels.front().mischief == Mischief::None) {
    pairing.heard[std::size_t(end)] = world_.now();
    pairing.waits_since[std::size_t(end)] = pairing.live != 0 ? world_.now() : kNever;
  }
  if (pipe.parcels.front().frame.header.kind == FrameKind::Slice) {
    read_slice(link, end, process, chunk);
  } else {
    read_frame(link, end, process);
  }
}

void Reader::read_frame(Link& link, int end, Process& process) {
  Pipe& pipe = link.pipe[std::size_t(1 - end)];
  const Parcel parcel = pipe.parcels.pop();
  --pipe.sending;
  const FrameHeader& header = parcel.frame.header;
  world_.log("frame", link.index, end, int(header.kind), header.sequence, header.control);
  const Body empty;
  const Body& body = parcel.frame.body ? *parcel.frame.body : empty;
  const bool accepted = well_formed(header) && process.call([&](Node& node, TimeNs now) {
    return node.frame(link.id, header, std::span(body), now);
  });
  judge(link, end, parcel.mischief, accepted, true);
}

void Reader::read_slice(Link& link, int end, Process& process, const Chunk& chunk) {
  Pipe& pipe = link.pipe[std::size_t(1 - end)];
  const FrameHeader header = pipe.parcels.front().frame.header;
  const Mischief mischief = pipe.parcels.front().mischief;
  if (world_.network.on_one_host(link) && !link.open(1 - end)) {
    // Nothing is copied out of a process that has closed its end.
    return world_.network.lost(link, end, "the peer closed it");
  }
  if (chunk.first) {
    pipe.was_granted = pipe.was_refused = false;
    world_.log("slice", link.index, end, header.sequence, header.flow, header.offset);
    const bool accepted = well_formed(header) && process.call([&](Node& node, TimeNs now) {
      return node.slice(link.id, header, now);
    });
    // Only the checksum tells of a damaged payload; and of a flow that is over, any slice is
    // dropped.
    const bool later = mischief == Mischief::Payload && accepted;
    if (!later && !judge(link, end, mischief, accepted, mischief != Mischief::Offset)) return;
    if (!link.open(end)) return;
  }
  if (chunk.bytes != 0) {
    if (world_.network.rail(link).places_by_itself) {
      placed(link, end, process, chunk);
    } else {
      land(link, end, process, chunk);
    }
  }
  if (!chunk.last) return;
  const bool whole = !pipe.was_refused;
  pipe.was_granted = pipe.was_refused = false;
  pipe.parcels.pop();
  --pipe.sending;
  world_.log("landed", link.index, end, header.sequence, header.flow, header.offset);
  const bool accepted =
      process.call([&](Node& node, TimeNs now) { return node.landed(link.id, header, now); });
  judge(link, end, mischief, accepted, whole && mischief == Mischief::Payload);
}

// A transport that asks again before every copy.
void Reader::land(Link& link, int end, Process& process, const Chunk& chunk) {
  Pipe& pipe = link.pipe[std::size_t(1 - end)];
  const FrameHeader& header = pipe.parcels.front().frame.header;
  where_.clear();
  if (!process.node().landing(link.id, header.flow, header.offset + chunk.from, chunk.bytes,
                              where_)) {
    world_.log("refused", link.index, end, header.flow, header.offset + chunk.from);
    world_.coverage.mark(pipe.was_granted ? Seen::TornThenRefused : Seen::LateRefused);
    pipe.was_refused = true;
    return;
  }
  pipe.was_granted = true;
  write(link, end, chunk);
}

// A link that was told once where the slice goes, and then writes by itself until it is closed.
void Reader::placed(Link& link, int end, Process& process, const Chunk& chunk) {
  Pipe& pipe = link.pipe[std::size_t(1 - end)];
  const FrameHeader& header = pipe.parcels.front().frame.header;
  if (!pipe.was_granted && !pipe.was_refused) {
    pipe.granted.clear();
    pipe.was_granted = process.node().landing(link.id, header.flow, header.offset,
                                              header.body_bytes, pipe.granted);
    pipe.was_refused = !pipe.was_granted;
  }
  if (pipe.was_refused) return;
  world_.coverage.mark(Seen::PlacedDirectly);
  cut(pipe.granted, chunk.from, chunk.bytes, where_);
  write(link, end, chunk);
}

void Reader::write(Link& link, int end, const Chunk& chunk) {
  const int sender = 1 - end;
  const Parcel& parcel = link.pipe[std::size_t(sender)].parcels.front();
  const FrameHeader& header = parcel.frame.header;
  const std::uint64_t offset = header.offset + chunk.from;
  world_.log("write", link.index, end, header.flow, offset, chunk.bytes);
  if (!world_.ledger.may_land(link.pairing, sender, header.flow, offset, chunk.bytes, where_)) {
    return;
  }
  const std::uint8_t* in = parcel.payload.data() + chunk.from;
  if (world_.network.on_one_host(link)) {
    bytes_.assign(chunk.bytes, 0xee);
    cut(parcel.source, chunk.from, chunk.bytes, from_);
    const std::uint32_t reader_of =
        world_.network.pairing(link.pairing).process[std::size_t(sender)];
    if (!from_.empty()) {
      world_.ledger.may_read(reader_of, header.flow, offset, chunk.bytes, from_);
      world_.coverage.mark(Seen::LocalCopied);
    }
    std::uint8_t* out = bytes_.data();
    for (const Piece& piece : from_) {
      std::memcpy(out, memory(piece.address), piece.bytes);
      out += piece.bytes;
    }
    in = bytes_.data();
  }
  for (const Piece& piece : where_) {
    std::memcpy(memory(piece.address), in, piece.bytes);
    in += piece.bytes;
  }
}

bool Reader::judge(Link& link, int end, Mischief mischief, bool accepted, bool verifiable) {
  if (accepted) {
    if (mischief != Mischief::None && verifiable) {
      world_.fail("P6: a damaged frame was accepted (mischief " + std::to_string(int(mischief)) +
                  ")");
    }
    return true;
  }
  if (mischief == Mischief::None) world_.fail("a sound frame was refused as malformed");
  world_.coverage.mark(seen(mischief));
  world_.network.lost(link, end, "a malformed frame");
  return false;
}

}  // namespace tent::sim
