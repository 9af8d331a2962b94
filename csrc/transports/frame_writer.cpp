// Stage: transport. See frame_writer.h.
#include "transports/frame_writer.h"

#include <algorithm>

namespace tent {
namespace {

constexpr std::size_t kHeaderBytes = sizeof(FrameHeader);
constexpr std::size_t kPartsMax = 64;  // parts of small frames in one write
constexpr std::size_t kGatherBytesMax = 1u << 20;

void append(std::vector<iovec>& parts, const void* data, std::size_t bytes, std::size_t skip) {
  // iovec has no const form; writing streams never changes what it points to.
  auto* start = static_cast<std::uint8_t*>(const_cast<void*>(data));
  if (skip < bytes) parts.push_back({start + skip, bytes - skip});
}

std::size_t body_bytes(const Frame& frame) { return frame.body ? frame.body->size() : 0; }

// A slice whose source ended before it left keeps its number, so that the peer misses none.
void withdraw(Frame& frame) {
  FrameHeader& header = frame.header;
  header.kind = FrameKind::Ping;
  header.flags = 0;
  header.body_bytes = header.crc = 0;
  header.flow = header.offset = 0;
}

// One thread at a time polls an engine, and nothing in here outlives a call.
std::vector<iovec>& spare_parts() {
  thread_local std::vector<iovec> parts;
  parts.clear();
  return parts;
}

}  // namespace

bool FrameWriter::send(Receiver& receiver, std::uint64_t budget, bool& moved) {
  while (!queue_.empty() && link_.live()) {
    if (budget == 0) return true;
    std::vector<iovec>& parts = spare_parts();
    const std::size_t wanted = gather(receiver, budget, parts);
    if (!link_.live()) return false;
    if (wanted == 0) return budget == 0;  // else the slice waits for its transport
    const std::ptrdiff_t written = stream_.write_some(parts.data(), int(parts.size()));
    if (written <= 0) return false;
    advance(std::size_t(written));
    moved = true;
    if (std::size_t(written) < wanted) return false;
    budget -= std::min<std::uint64_t>(budget, std::uint64_t(written));
  }
  return false;
}

std::size_t FrameWriter::gather(Receiver& receiver, std::uint64_t& budget,
                                std::vector<iovec>& parts) {
  std::size_t total = 0;
  for (std::size_t i = 0; i < queue_.size(); ++i) {
    Frame& frame = queue_[i];
    const std::size_t before = parts.size();
    bool more = true;
    if (frame.header.kind == FrameKind::Slice) {
      more = gather_slice(i, receiver, budget, parts);
    } else {
      const std::size_t skip = i == 0 ? sent_ : 0;
      append(parts, &frame.header, kHeaderBytes, skip);
      if (frame.body) {
        append(parts, frame.body->data(), frame.body->size(),
               skip > kHeaderBytes ? skip - kHeaderBytes : 0);
      }
    }
    for (std::size_t p = before; p < parts.size(); ++p) total += parts[p].iov_len;
    if (!more || parts.size() >= kPartsMax || total >= kGatherBytesMax) break;
  }
  return total;
}

// False: nothing can follow in this write, since how much of the slice comes next is not known.
bool FrameWriter::gather_slice(std::size_t index, Receiver& receiver, std::uint64_t& budget,
                               std::vector<iovec>& parts) {
  Frame& frame = queue_[index];
  const std::size_t skip = index == 0 ? sent_ : 0;
  if (!slice_begun_) slices_.begin(frame.header);
  slice_begun_ = true;
  const std::size_t before = parts.size();
  append(parts, &frame.header, kHeaderBytes, skip);
  switch (slices_.gather(skip > 0, receiver, budget, parts)) {
    case SliceWriter::Next::Ready:
      return false;
    case SliceWriter::Next::Blocked:
      // The header waits with its payload, so that the slice can still be withdrawn.
      if (skip == 0) parts.resize(before);
      return false;
    case SliceWriter::Next::Gone:
      slice_begun_ = false;
      withdraw(frame);
      return true;
  }
  return false;
}

void FrameWriter::advance(std::size_t bytes) {
  while (bytes > 0) {
    const Frame& frame = queue_.front();
    const bool slice = frame.header.kind == FrameKind::Slice;
    const std::size_t end = kHeaderBytes + (slice ? 0 : body_bytes(frame));
    const std::size_t taken = std::min(bytes, end - sent_);
    sent_ += taken;
    bytes -= taken;
    if (!slice) {
      if (sent_ == end) pop();
    } else if (bytes > 0) {
      // A write ends with the first slice in it: all the rest is the slice's.
      if (slices_.sent(bytes)) {
        slice_begun_ = false;
        pop();
      }
      return;
    }
  }
}

void FrameWriter::pop() {
  queue_.pop();
  sent_ = 0;
}

}  // namespace tent
