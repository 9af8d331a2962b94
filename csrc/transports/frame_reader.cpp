// Stage: transport. See frame_reader.h.
#include "transports/frame_reader.h"

#include <algorithm>

namespace tent {
namespace {

// A body grows with what has come of it: its header alone must not make us allocate 64 MiB.
constexpr std::size_t kBodyStep = 256u << 10;
constexpr std::size_t kBodyKept = 16u << 10;  // an idle link holds no more than this

}  // namespace

bool FrameReader::receive(Receiver& receiver, std::uint64_t budget, bool& moved) {
  ahead_.refreshed();
  const std::uint64_t start = budget;
  while (link_.live() && budget > 0 && step(receiver, budget)) {
  }
  if (budget < start) moved = true;
  return link_.live() && budget == 0;
}

void FrameReader::catch_up(Receiver& receiver) {
  ahead_.hold();
  std::uint64_t budget = ahead_.size();
  while (link_.live() && budget > 0 && step(receiver, budget)) {
  }
}

// False: nothing more can be done now.
bool FrameReader::step(Receiver& receiver, std::uint64_t& budget) {
  switch (state_) {
    case State::Header: {
      if (!ahead_.need(sizeof(FrameHeader)) || !link_.live()) return false;
      std::memcpy(&header_, ahead_.data(), sizeof header_);
      ahead_.skip(sizeof header_);
      budget -= std::min<std::uint64_t>(budget, sizeof header_);
      return take_header(receiver);
    }
    case State::Body:
      return take_body(receiver, budget);
    case State::Slice:
      return take_slice(receiver, budget);
  }
  return false;
}

bool FrameReader::take_header(Receiver& receiver) {
  if (!well_formed(header_) || header_.body_bytes > kBodyBytesMax) {
    return link_.broke("malformed frame header from the peer; the link was closed");
  }
  if (header_.kind == FrameKind::Slice) {
    if (!receiver.slice(link_.id, header_)) {
      return link_.broke("malformed slice from the peer; the link was closed");
    }
    if (!link_.live()) return false;
    slices_.begin(header_);
    state_ = State::Slice;
    return true;
  }
  if (header_.body_bytes == 0) return deliver(receiver, {});
  state_ = State::Body;
  body_taken_ = 0;
  return true;
}

bool FrameReader::take_body(Receiver& receiver, std::uint64_t& budget) {
  const std::size_t bytes = header_.body_bytes;
  if (bytes <= ReadAhead::kBytes) {
    if (!ahead_.need(bytes) || !link_.live()) return false;
    const std::span<const std::uint8_t> body(ahead_.data(), bytes);
    budget -= std::min<std::uint64_t>(budget, bytes);
    const bool good = deliver(receiver, body);
    ahead_.skip(bytes);
    return good;
  }
  body_.resize(std::min(bytes, body_taken_ + kBodyStep));
  const std::size_t room = body_.size() - body_taken_;
  std::size_t got = std::min(room, ahead_.size());
  if (got > 0) {
    std::memcpy(body_.data() + body_taken_, ahead_.data(), got);
    ahead_.skip(got);
  } else {
    const iovec part{body_.data() + body_taken_, room};
    const std::ptrdiff_t read = ahead_.read(&part, 1, room);
    if (read <= 0) return false;
    got = std::size_t(read);
  }
  body_taken_ += got;
  budget -= std::min<std::uint64_t>(budget, got);
  if (body_taken_ < bytes) return true;
  const bool good = deliver(receiver, body_);
  if (body_.capacity() > kBodyKept) Body().swap(body_);
  return good;
}

bool FrameReader::take_slice(Receiver& receiver, std::uint64_t& budget) {
  if (!slices_.take(ahead_, receiver, budget)) return false;
  state_ = State::Header;
  if (slices_.lands_later()) return link_.live();
  if (!receiver.landed(link_.id, header_)) {
    return link_.broke("a slice from the peer has a wrong checksum; the link was closed");
  }
  return link_.live();
}

bool FrameReader::deliver(Receiver& receiver, std::span<const std::uint8_t> body) {
  state_ = State::Header;
  if (!receiver.frame(link_.id, header_, body)) {
    return link_.broke("malformed frame from the peer; the link was closed");
  }
  return link_.live();
}

}  // namespace tent
