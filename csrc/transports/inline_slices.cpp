// Stage: transport. See inline_slices.h.
#include "transports/inline_slices.h"

#include <algorithm>
#include <array>
#include <memory>

namespace tent {
namespace {

constexpr std::size_t kPartsMax = 1000;  // below IOV_MAX, with a few to spare
constexpr std::size_t kFillerBytes = 64u << 10;

const std::array<std::uint8_t, kFillerBytes> kZeros{};
const Ending kIntact = Ending::Intact, kTorn = Ending::Torn;

// Where dropped payload goes. Never read.
std::uint8_t* drain() {
  thread_local const auto bytes = std::make_unique<std::uint8_t[]>(kFillerBytes);
  return bytes.get();
}

iovec part_of(const void* data, std::size_t bytes) { return {const_cast<void*>(data), bytes}; }

iovec part_of(const Piece& piece, std::uint64_t bytes) {
  return {reinterpret_cast<void*>(piece.address), std::size_t(bytes)};
}

// At most `bytes` of the pieces, as parts; returns how many bytes that are.
std::uint64_t append_pieces(const Pieces& pieces, std::uint64_t bytes, std::vector<iovec>& parts) {
  std::uint64_t total = 0;
  for (const Piece& piece : pieces) {
    if (total == bytes || parts.size() >= kPartsMax) break;
    const std::uint64_t taken = std::min(piece.bytes, bytes - total);
    parts.push_back(part_of(piece, taken));
    total += taken;
  }
  return total;
}

}  // namespace

void InlineSliceWriter::begin(const FrameHeader& header) {
  header_ = header;
  done_ = 0;
  ending_ = Ending::Intact;
}

SliceWriter::Next InlineSliceWriter::gather(bool committed, Receiver& receiver, std::uint64_t&,
                                            std::vector<iovec>& parts) {
  const std::uint64_t payload = header_.body_bytes;
  if (done_ < payload && ending_ == Ending::Intact) {
    const std::uint64_t bytes = std::min(payload - done_, bite_.bytes());
    pieces_.clear();
    if (receiver.source(link_.id, header_.flow, header_.offset + done_, bytes, pieces_)) {
      bite_.learn(pieces_.size());
      const std::uint64_t gathered = append_pieces(pieces_, bytes, parts);
      if (done_ + gathered == payload) parts.push_back(part_of(&kIntact, sizeof kIntact));
      return Next::Ready;
    }
    if (!committed) return Next::Gone;
    ending_ = Ending::Torn;
  }
  if (done_ < payload) {
    gather_filler(parts);
  } else {
    const std::uint64_t skip = done_ - payload;
    const Ending& ending = ending_ == Ending::Torn ? kTorn : kIntact;
    const auto* word = reinterpret_cast<const std::uint8_t*>(&ending);
    parts.push_back(part_of(word + skip, sizeof ending - skip));
  }
  return Next::Ready;
}

void InlineSliceWriter::gather_filler(std::vector<iovec>& parts) const {
  std::uint64_t left = std::min<std::uint64_t>(header_.body_bytes - done_, Bite::kMax);
  while (left > 0) {
    const std::uint64_t bytes = std::min<std::uint64_t>(left, kFillerBytes);
    parts.push_back(part_of(kZeros.data(), bytes));
    left -= bytes;
  }
}

bool InlineSliceWriter::sent(std::size_t bytes) {
  done_ += bytes;
  return done_ == header_.body_bytes + sizeof(Ending);
}

void InlineSliceReader::begin(const FrameHeader& header) {
  header_ = header;
  done_ = 0;
}

bool InlineSliceReader::take(ReadAhead& ahead, Receiver& receiver, std::uint64_t& budget) {
  while (done_ < header_.body_bytes) {
    if (budget == 0 || (ahead.size() == 0 && ahead.dry())) return false;
    std::uint64_t bytes = std::min(header_.body_bytes - done_, bite_.bytes());
    if (ahead.size() > 0) bytes = std::min<std::uint64_t>(bytes, ahead.size());
    pieces_.clear();
    const bool wanted =
        receiver.landing(link_.id, header_.flow, header_.offset + done_, bytes, pieces_);
    link_.later = wanted && pieces_.empty();
    if (!link_.live() || link_.later) return false;
    bite_.learn(pieces_.size());
    const std::uint64_t got =
        ahead.size() > 0 ? take_ahead(ahead, bytes, wanted) : take_stream(ahead, bytes, wanted);
    if (got == 0) return false;
    done_ += got;
    budget -= std::min(budget, got);
  }
  return take_ending(ahead, receiver);
}

std::uint64_t InlineSliceReader::take_ahead(ReadAhead& ahead, std::uint64_t bytes, bool wanted) {
  const std::uint8_t* from = ahead.data();
  if (wanted) {
    for (const Piece& piece : pieces_) {
      std::memcpy(reinterpret_cast<void*>(piece.address), from, piece.bytes);
      from += piece.bytes;
    }
  }
  ahead.skip(bytes);
  return bytes;
}

// 0: nothing has come, or the stream broke.
std::uint64_t InlineSliceReader::take_stream(ReadAhead& ahead, std::uint64_t bytes, bool wanted) {
  parts_.clear();
  std::uint64_t asked = 0;
  if (wanted) {
    asked = append_pieces(pieces_, bytes, parts_);
  } else {
    asked = std::min<std::uint64_t>(bytes, kFillerBytes);
    parts_.push_back({drain(), std::size_t(asked)});
  }
  std::uint64_t total = asked;
  // The next header comes along with the end of this payload: no system call for it alone.
  if (done_ + asked == header_.body_bytes) {
    parts_.push_back(ahead.spare());
    total += ReadAhead::kBytes;
  }
  const std::ptrdiff_t got = ahead.read(parts_.data(), int(parts_.size()), total);
  if (got <= 0) return 0;
  if (std::uint64_t(got) <= asked) return std::uint64_t(got);
  ahead.added(std::size_t(got) - asked);
  return asked;
}

bool InlineSliceReader::take_ending(ReadAhead& ahead, Receiver& receiver) {
  Ending ending;
  if (!ahead.need(sizeof ending) || !link_.live()) return false;
  std::memcpy(&ending, ahead.data(), sizeof ending);
  ahead.skip(sizeof ending);
  if (ending == Ending::Intact) return true;
  if (ending != Ending::Torn) {
    return link_.broke("malformed slice payload from the peer; the link was closed");
  }
  // Filler must never count as bytes that landed: only a transfer that has ended here, too, may be
  // finished with it.
  pieces_.clear();
  const bool wanted =
      receiver.landing(link_.id, header_.flow, header_.offset, header_.body_bytes, pieces_);
  if (wanted && link_.live()) link_.broke("the peer gave up a slice that is still awaited here");
  return link_.live();
}

}  // namespace tent
