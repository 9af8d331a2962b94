// Stage: transport. See cuda_slices.h.
#include "transports/cuda_slices.h"

#include <algorithm>

namespace tent {
namespace {

constexpr const char* kWithdrawn = "the peer has given this link up";
constexpr ChunkExtra kSpaces{ChunkHeader::Kind::Space, 1, sizeof(SharedSpace)};

}  // namespace

bool CudaSliceReader::take(ReadAhead& ahead, Receiver& receiver, std::uint64_t& budget) {
  for (;;) {
    const Slice& slice = slices_.back();
    const bool whole = slice.described == slice.header.body_bytes;
    if (told_bytes_ > 0 && (whole || told_.size() >= kToldMax)) {
      if (budget == 0 || !start(receiver, budget)) return false;
    } else if (whole) {
      return true;
    } else if (!next_chunk(ahead, receiver)) {
      return false;
    }
  }
}

// False: it has not come yet, or it is malformed.
bool CudaSliceReader::next_chunk(ReadAhead& ahead, Receiver& receiver) {
  Chunk chunk;
  if (!whole_chunk(link_, ahead, kSpaces, chunk)) return false;
  const ChunkHeader::Kind kind = chunk.header.kind;
  bool good = false;
  if (kind == ChunkHeader::Kind::Pieces) good = take_pieces(chunk.body, chunk.header.count);
  if (kind == ChunkHeader::Kind::Space) good = take_space(chunk.body);
  if (kind == ChunkHeader::Kind::Torn) good = take_torn(receiver);
  ahead.skip(chunk.bytes);
  return good && link_.live();
}

bool CudaSliceReader::take_space(const std::uint8_t* bytes) {
  SharedSpace space;
  std::memcpy(&space, bytes, sizeof space);
  if (space.number == 0 || space.bytes == 0 || space.base > UINT64_MAX - space.bytes) {
    return malformed(link_);
  }
  fetcher_.learn(space);
  return true;
}

// Neighbours become one: what is one copy to a GPU.
bool CudaSliceReader::take_pieces(const std::uint8_t* bytes, std::size_t count) {
  Slice& into = slices_.back();
  for (std::size_t i = 0; i < count; ++i, bytes += sizeof(NamedPiece)) {
    NamedPiece piece;
    if (!take_piece(link_, bytes, into.header.body_bytes - into.described, piece)) return false;
    into.described += piece.bytes;
    told_bytes_ += piece.bytes;
    const bool follows = told_at_ < told_.size() && told_.back().space == piece.space &&
                         told_.back().place + told_.back().bytes == piece.place;
    if (follows) {
      told_.back().bytes += piece.bytes;
    } else {
      told_.push_back(piece);
    }
  }
  return true;
}

bool CudaSliceReader::take_torn(Receiver& receiver) {
  Slice& into = slices_.back();
  const FrameHeader header = into.header;
  const std::uint64_t rest = header.body_bytes - into.described;
  const std::uint64_t offset = header.offset + into.described;
  into.described += rest;
  into.settled += rest;
  return take_hole(link_, receiver, header.flow, offset, rest, pieces_);
}

// Starts the copies of what was told of the last slice, or drops it.
bool CudaSliceReader::start(Receiver& receiver, std::uint64_t& budget) {
  if (copies_.size() >= kCopiesMax) return false;  // advance() makes room
  Slice& into = slices_.back();
  const FrameHeader header = into.header;
  const std::uint64_t bytes = std::min(told_bytes_, bite_);
  const std::uint64_t offset = header.offset + into.described - told_bytes_;
  pieces_.clear();
  const bool wanted = receiver.landing(link_.id, header.flow, offset, bytes, pieces_);
  if (!link_.live()) return false;
  if (pieces_.size() > kPiecesMax && bite_ > Bite::kMin) bite_ /= 2;
  if (pieces_.size() < kPiecesMax / 4 && bite_ < kBodyBytesMax) bite_ *= 2;
  split(bytes);
  if (!wanted) {
    slices_.back().settled += bytes;
  } else if (!start_copy(bytes, header)) {
    return false;
  }
  budget -= std::min(budget, kCopyCost * std::max(from_.size(), pieces_.size()));
  return true;
}

bool CudaSliceReader::start_copy(std::uint64_t bytes, const FrameHeader& header) {
  const bool may = copies_.empty() ? channel_.begin_fetch() : channel_.may_fetch();
  if (!may) return link_.broke(kWithdrawn);
  const GpuCopyId id = fetcher_.copy(header.flow, from_, pieces_);
  if (id != 0) {
    copies_.push({id, first_ + slices_.size() - 1, bytes, false});
  } else if (copies_.empty()) {
    channel_.end_fetch();
  }
  return id != 0;
}

// Moves the first bytes of what was told into from_.
void CudaSliceReader::split(std::uint64_t bytes) {
  from_.clear();
  told_bytes_ -= bytes;
  while (bytes > 0) {
    NamedPiece& piece = told_[told_at_];
    const std::uint64_t taken = std::min(bytes, piece.bytes);
    from_.push_back({piece.space, piece.place, taken});
    piece.place += taken;
    piece.bytes -= taken;
    bytes -= taken;
    if (piece.bytes == 0) ++told_at_;
  }
  if (told_at_ < told_.size()) return;
  told_.clear();
  told_at_ = 0;
}

void CudaSliceReader::copied(GpuCopyId id) {
  for (std::size_t i = 0; i < copies_.size(); ++i) {
    if (copies_[i].id == id) copies_[i].ended = true;
  }
}

bool CudaSliceReader::advance(Receiver& receiver, bool& moved) {
  bool any = false;
  while (!copies_.empty() && copies_.front().ended) {
    const Copy copy = copies_.front();
    copies_.pop();
    slices_[copy.slice - first_].settled += copy.bytes;
    any = true;
    if (!copies_.empty() ? channel_.may_fetch() : channel_.end_fetch()) continue;
    return link_.broke(kWithdrawn);
  }
  while (link_.live() && !slices_.empty() &&
         slices_.front().settled == slices_.front().header.body_bytes) {
    const FrameHeader header = slices_.front().header;
    slices_.pop();
    ++first_;
    any = true;
    if (!receiver.landed(link_.id, header)) {
      return link_.broke("a slice from the peer has a wrong checksum; the link was closed");
    }
  }
  moved |= any;
  return any && link_.live();
}

void CudaSliceReader::wait() {
  for (std::size_t i = 0; i < copies_.size(); ++i) fetcher_.finish(copies_[i].id);
}

void CudaSliceReader::stop() {
  if (copies_.empty()) return;
  wait();
  copies_ = {};
  channel_.end_fetch();
}

}  // namespace tent
