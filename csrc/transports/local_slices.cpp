// Stage: transport. See local_slices.h.
#include "transports/local_slices.h"

#include <algorithm>

namespace tent {

namespace {
constexpr const char* kWithdrawn = "the peer has given this link up";
}

void LocalSliceWriter::begin(const FrameHeader& header) {
  header_ = header;
  done_ = covered_ = 0;
  chunk_bytes_ = chunk_sent_ = 0;
}

SliceWriter::Next LocalSliceWriter::gather(bool committed, Receiver& receiver,
                                           std::uint64_t& budget, std::vector<iovec>& parts) {
  if (chunk_sent_ == chunk_bytes_) {
    const Next next = name_next(committed, receiver, budget);
    if (next != Next::Ready) return next;
  }
  parts.push_back({chunk_.data() + chunk_sent_, chunk_bytes_ - chunk_sent_});
  return Next::Ready;
}

SliceWriter::Next LocalSliceWriter::name_next(bool committed, Receiver& receiver,
                                              std::uint64_t& budget) {
  const std::uint64_t bytes = std::min(header_.body_bytes - done_, bite_.bytes());
  pieces_.clear();
  named_.clear();
  if (receiver.source(link_.id, header_.flow, header_.offset + done_, bytes, pieces_)) {
    bite_.learn(pieces_.size());
    if (namer_.carries(pieces_, header_.body_bytes)) {
      write_bytes();
      return Next::Ready;
    }
    covered_ = namer_.name(pieces_, budget, named_);
    if (covered_ == 0) return Next::Blocked;
    write_chunk(ChunkHeader::Kind::Pieces);
  } else if (committed) {
    covered_ = header_.body_bytes - done_;
    write_chunk(ChunkHeader::Kind::Torn);
  } else {
    return Next::Gone;
  }
  return Next::Ready;
}

void LocalSliceWriter::write_chunk(ChunkHeader::Kind kind) {
  const auto preface = named_.empty() ? std::span<const std::uint8_t>() : namer_.preface();
  const ChunkHeader header{kind, std::uint32_t(named_.size())};
  const std::size_t pieces_bytes = named_.size() * sizeof(NamedPiece);
  if (!preface.empty()) std::memcpy(chunk_.data(), preface.data(), preface.size());
  std::uint8_t* at = chunk_.data() + preface.size();
  std::memcpy(at, &header, sizeof header);
  if (pieces_bytes > 0) std::memcpy(at + sizeof header, named_.data(), pieces_bytes);
  chunk_bytes_ = preface.size() + sizeof header + pieces_bytes;
  chunk_sent_ = 0;
}

void LocalSliceWriter::write_bytes() {
  constexpr std::size_t kHeader = sizeof(ChunkHeader);
  covered_ = 0;
  for (const Piece& piece : pieces_) {
    const std::uint64_t bytes = std::min(piece.bytes, kCarriedBytesMax - covered_);
    std::memcpy(chunk_.data() + kHeader + covered_, reinterpret_cast<const void*>(piece.address),
                bytes);
    covered_ += bytes;
  }
  const ChunkHeader header{ChunkHeader::Kind::Bytes, std::uint32_t(covered_)};
  std::memcpy(chunk_.data(), &header, kHeader);
  chunk_bytes_ = kHeader + covered_;
  chunk_sent_ = 0;
}

bool LocalSliceWriter::sent(std::size_t bytes) {
  chunk_sent_ += bytes;
  if (chunk_sent_ < chunk_bytes_) return false;
  done_ += covered_;
  covered_ = 0;
  return done_ == header_.body_bytes;
}

void LocalSliceReader::begin(const FrameHeader& header) {
  header_ = header;
  done_ = chunk_left_ = 0;
}

bool LocalSliceReader::take(ReadAhead& ahead, Receiver& receiver, std::uint64_t& budget) {
  for (;;) {
    if (chunk_left_ > 0) {
      if (budget == 0 || !pull(receiver, budget)) return false;
    } else if (done_ == header_.body_bytes) {
      return true;
    } else if (!next_chunk(ahead, receiver)) {
      return false;
    }
  }
}

// False: it has not come yet, or it is malformed.
bool LocalSliceReader::next_chunk(ReadAhead& ahead, Receiver& receiver) {
  Chunk chunk;
  if (!whole_chunk(link_, ahead, {}, chunk)) return false;
  if (chunk.header.kind == ChunkHeader::Kind::Torn) {
    ahead.skip(chunk.bytes);
    const std::uint64_t offset = header_.offset + done_, rest = header_.body_bytes - done_;
    done_ = header_.body_bytes;
    return take_hole(link_, receiver, header_.flow, offset, rest, pieces_);
  }
  if (!take_pieces(chunk.body, chunk.header.count)) return false;
  ahead.skip(chunk.bytes);
  return true;
}

bool LocalSliceReader::take_pieces(const std::uint8_t* bytes, std::size_t count) {
  chunk_.resize(count);
  at_ = 0;
  std::uint64_t left = header_.body_bytes - done_;
  for (NamedPiece& piece : chunk_) {
    if (!take_piece(link_, bytes, left, piece)) return false;
    bytes += sizeof piece;
    left -= piece.bytes;
  }
  chunk_left_ = header_.body_bytes - done_ - left;
  return true;
}

// Fetches or drops the next bytes of the chunk at hand.
bool LocalSliceReader::pull(Receiver& receiver, std::uint64_t& budget) {
  const std::uint64_t bytes = std::min(chunk_left_, bite_.bytes());
  pieces_.clear();
  const bool wanted =
      receiver.landing(link_.id, header_.flow, header_.offset + done_, bytes, pieces_);
  if (!link_.live()) return false;
  if (wanted && pieces_.empty()) {
    budget = 0;  // there is no memory for it yet: the link's turn is over, not its work
    return false;
  }
  bite_.learn(pieces_.size());
  split(bytes);
  if (wanted && !fetch()) return false;
  for (const NamedPiece& piece : from_) {
    if (!fetcher_.release(piece)) return false;
  }
  done_ += bytes;
  chunk_left_ -= bytes;
  budget -= std::min(budget, bytes);
  return true;
}

// The pieces of from_, unless the peer has taken them back.
bool LocalSliceReader::fetch() {
  if (!channel_.begin_fetch()) return link_.broke(kWithdrawn);
  const bool fetched = fetcher_.fetch(from_, pieces_);
  const bool valid = channel_.end_fetch();
  return fetched && (valid || link_.broke(kWithdrawn));
}

// Moves the first `bytes` of the chunk at hand into from_.
void LocalSliceReader::split(std::uint64_t bytes) {
  from_.clear();
  while (bytes > 0) {
    NamedPiece& piece = chunk_[at_];
    const std::uint64_t taken = std::min(bytes, piece.bytes);
    from_.push_back({piece.space, piece.place, taken});
    piece.place += taken;
    piece.bytes -= taken;
    bytes -= taken;
    if (piece.bytes == 0) ++at_;
  }
}

}  // namespace tent
