// Stage: transport. See slices.h.
#include "transports/rdma/slices.h"

#include <algorithm>

namespace tent {
namespace {

constexpr ChunkExtra kCarried{ChunkHeader::Kind::Bytes, kCarriedBytesMax, 1};

}  // namespace

void RdmaSliceReader::begin(const FrameHeader& header) { slices_.push({header, 0, 0}); }

bool RdmaSliceReader::take(ReadAhead& ahead, Receiver& receiver, std::uint64_t&) {
  while (slices_.back().described < slices_.back().header.body_bytes) {
    if (full() || !next_chunk(ahead, receiver)) return false;
  }
  return true;
}

// False: it has not come yet, or it is malformed.
bool RdmaSliceReader::next_chunk(ReadAhead& ahead, Receiver& receiver) {
  Chunk chunk;
  if (!whole_chunk(link_, ahead, kCarried, chunk)) return false;
  const ChunkHeader::Kind kind = chunk.header.kind;
  bool good = false;
  if (kind == ChunkHeader::Kind::Pieces) good = take_pieces(chunk.body, chunk.header.count);
  if (kind == ChunkHeader::Kind::Bytes) good = take_bytes(chunk.body, chunk.header.count, receiver);
  if (kind == ChunkHeader::Kind::Torn) good = take_torn(receiver);
  ahead.skip(chunk.bytes);
  return good && link_.live();
}

bool RdmaSliceReader::take_pieces(const std::uint8_t* bytes, std::size_t count) {
  Slice& into = slices_.back();
  for (std::size_t i = 0; i < count; ++i, bytes += sizeof(NamedPiece)) {
    NamedPiece piece;
    if (!take_piece(link_, bytes, into.header.body_bytes - into.described, piece)) return false;
    if (piece.space > UINT32_MAX) return malformed(link_);
    told_.push({first_ + slices_.size() - 1, into.described, piece});
    into.described += piece.bytes;
  }
  return true;
}

bool RdmaSliceReader::take_bytes(const std::uint8_t* bytes, std::size_t count, Receiver& receiver) {
  Slice& into = slices_.back();
  if (count > into.header.body_bytes - into.described) return malformed(link_);
  const std::uint64_t offset = into.described;
  into.described += count;
  into.settled += count;
  return copy_in(receiver, FrameHeader(into.header), offset, bytes, count);
}

bool RdmaSliceReader::take_torn(Receiver& receiver) {
  Slice& into = slices_.back();
  const FrameHeader header = into.header;
  const std::uint64_t offset = into.described, rest = header.body_bytes - into.described;
  into.described += rest;
  into.settled += rest;
  return take_hole(link_, receiver, header.flow, header.offset + offset, rest, pieces_);
}

// Copies bytes that came through our own buffers to where the Receiver wants them, if it does.
bool RdmaSliceReader::copy_in(Receiver& receiver, const FrameHeader& header, std::uint64_t offset,
                              const std::uint8_t* bytes, std::uint64_t count) {
  pieces_.clear();
  if (!receiver.landing(link_.id, header.flow, header.offset + offset, count, pieces_)) {
    return link_.live();
  }
  if (!link_.live()) return false;
  for (const Piece& piece : pieces_) {
    std::memcpy(reinterpret_cast<void*>(piece.address), bytes, piece.bytes);
    bytes += piece.bytes;
  }
  return true;
}

bool RdmaSliceReader::advance(Receiver& receiver, std::uint64_t budget, bool& moved) {
  if (!settle_reads(receiver)) return false;
  while (!told_.empty() && budget > 0 && bytes_out_ < kBytesOut && poster_.may_read()) {
    if (!read_next(receiver, budget)) break;
    moved = true;
  }
  while (link_.live() && !slices_.empty() &&
         slices_.front().settled == slices_.front().header.body_bytes) {
    const FrameHeader header = slices_.front().header;
    slices_.pop();
    ++first_;
    moved = true;
    if (!receiver.landed(link_.id, header)) {
      return link_.broke("a slice from the peer has a wrong checksum; the link was closed");
    }
  }
  return link_.live() && budget == 0 && !told_.empty();
}

bool RdmaSliceReader::settle_reads(Receiver& receiver) {
  for (; done_ > 0 && link_.live(); --done_) {
    const Read read = reads_.front();
    reads_.pop();
    bytes_out_ -= read.bytes;
    slice(read.slice).settled += read.bytes;
    if (read.bounced == nullptr) continue;
    const FrameHeader header = slice(read.slice).header;
    if (!copy_in(receiver, header, read.offset, read.bounced, read.bytes)) return false;
    poster_.copied();
  }
  return link_.live();
}

bool RdmaSliceReader::read_next(Receiver& receiver, std::uint64_t& budget) {
  const Told told = told_.front();
  const FrameHeader header = slice(told.slice).header;
  NamedPiece from = told.piece;
  from.bytes = std::min({from.bytes, kReadBytes, bite_.bytes()});
  pieces_.clear();
  const bool wanted = receiver.landing_of_device(link_.id, header.flow, header.offset + told.offset,
                                                 from.bytes, pieces_);
  if (!link_.live()) return false;
  bite_.learn(pieces_.size());
  std::uint64_t bytes = from.bytes;
  if (wanted) {
    const ReadPoster::Posted posted = poster_.post_read(from, pieces_);
    if (posted.bytes == 0) return false;
    bytes = posted.bytes;
    reads_.push({told.slice, told.offset, bytes, posted.bounced});
    bytes_out_ += bytes;
  } else {
    slice(told.slice).settled += bytes;
  }
  budget -= std::min(budget, bytes);
  Told& rest = told_.front();
  rest.offset += bytes;
  rest.piece.place += bytes;
  rest.piece.bytes -= bytes;
  if (rest.piece.bytes == 0) told_.pop();
  return true;
}

bool RdmaSliceReader::placing(TransferId flow) const {
  for (std::size_t i = done_; i < reads_.size(); ++i) {
    if (slices_[reads_[i].slice - first_].header.flow == flow) return true;
  }
  return false;
}

}  // namespace tent
