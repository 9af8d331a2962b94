// Stage: device. See incoming.h.
#include "device/incoming.h"

#include <algorithm>
#include <cstring>

#include "engine/clock.h"

namespace tent {
namespace {

constexpr LinkId kMessages = 0;
constexpr std::size_t kTornMax = 1024;

void part_of(const Pieces& memory, std::uint64_t skip, std::uint64_t length, Pieces& out) {
  for (const Piece& piece : memory) {
    const std::uint64_t passed = std::min(skip, piece.bytes);
    const std::uint64_t taken = std::min(length, piece.bytes - passed);
    if (taken != 0) out.push_back({piece.address + passed, taken});
    skip -= passed;
    length -= taken;
  }
}

}  // namespace

void IncomingSlices::begin(LinkId link, PeerId peer, const FrameHeader& header, Way way) {
  const Origin origin = node_.landing_origin(peer, header.flow);
  if (origin.device == kHost) return;
  arriving_[link].push_back({peer, header.flow, header.offset, header.body_bytes, origin, way});
}

bool IncomingSlices::directly(LinkId link, TransferId flow, std::uint64_t offset,
                              std::uint64_t length, const std::function<bool(Device)>& reaches) {
  Arriving* slice = find(link, flow, offset, length);
  if (slice == nullptr || slice->way != Way::MayDirect || slice->torn) return false;
  if (slice->direct || !slice->memory.empty()) return slice->direct;
  slice->direct = !never_directly_.contains({slice->peer, flow}) && reaches(slice->origin.device);
  return slice->direct;
}

Device IncomingSlices::placed_directly(LinkId link, const FrameHeader& header) {
  const Arriving* slice = find(link, header.flow, header.offset, header.body_bytes);
  if (slice == nullptr || !slice->direct) return kHost;
  const Device device = slice->origin.device;
  drop(link, slice);
  return device;
}

bool IncomingSlices::torn(LinkId link, TransferId flow, std::uint64_t offset,
                          std::uint64_t length) {
  Arriving* slice = find(link, flow, offset, length);
  if (slice == nullptr || !slice->direct) return false;
  slice->torn = true;
  slice->direct = false;
  if (never_directly_.size() >= kTornMax) never_directly_.clear();
  never_directly_.emplace(slice->peer, flow);
  return true;
}

void IncomingSlices::drop(LinkId link, const Arriving* slice) {
  OnLink& slices = arriving_[link];
  slices.erase(slices.begin() + (slice - slices.data()));
  if (slices.empty()) arriving_.erase(link);
}

IncomingSlices::Arriving* IncomingSlices::find(LinkId link, TransferId flow, std::uint64_t offset,
                                               std::uint64_t length) {
  const auto slices = arriving_.find(link);
  if (slices == arriving_.end()) return nullptr;
  for (Arriving& slice : slices->second) {
    if (slice.flow == flow && offset >= slice.offset &&
        offset + length <= slice.offset + slice.bytes) {
      return &slice;
    }
  }
  return nullptr;
}

// False: there is no memory now; or none at all, and then the flow is over.
bool IncomingSlices::take(LinkId link, PeerId peer, TransferId flow, std::uint64_t bytes,
                          bool may_wait, Pieces& memory) {
  const auto held = holding_.find(link);
  const bool must = !may_wait || held == holding_.end();
  if (arena_.take(bytes, must, memory)) {
    ++holding_[link];
    return true;
  }
  if (must) node_.placed(peer, flow, "", 0, {Code::Failed, arena_.why(), ""}, now_ns());
  return false;
}

void IncomingSlices::give(LinkId link, const Pieces& memory) {
  if (memory.empty()) return;
  arena_.give(memory);
  const auto held = holding_.find(link);
  if (--held->second == 0) holding_.erase(held);
}

bool IncomingSlices::landing(LinkId link, TransferId flow, std::uint64_t offset,
                             std::uint64_t length, Pieces& out) {
  Arriving* slice = find(link, flow, offset, length);
  if (slice == nullptr) return true;
  out.clear();
  if (slice->torn) return false;
  if (slice->memory.empty() &&
      !take(link, slice->peer, flow, slice->bytes, slice->way == Way::MayWait, slice->memory)) {
    // Without a piece named, the transport asks again.
    return node_.landing_origin(slice->peer, flow).device != kHost;
  }
  part_of(slice->memory, offset - slice->offset, length, out);
  return true;
}

std::optional<bool> IncomingSlices::landed(LinkId link, const FrameHeader& header,
                                           const std::string& rail, TimeNs now) {
  Arriving* found = find(link, header.flow, header.offset, header.body_bytes);
  if (found == nullptr) return {};
  Arriving slice = std::move(*found);
  drop(link, found);
  Pieces to;
  if (!node_.landing(link, header.flow, header.offset, header.body_bytes, to)) {
    give(link, slice.memory);
    return {};
  }
  if (slice.memory.empty()) return false;  // torn, or the transport never asked where it goes
  std::uint64_t fresh = 0;
  if (!node_.arrived(link, header, slice.memory, fresh, now)) {
    give(link, slice.memory);
    return false;
  }
  start({slice.peer, slice.flow, fresh, rail, slice.origin, std::move(slice.memory), link}, to);
  return true;
}

void IncomingSlices::start(Running running, const Pieces& to) {
  const CopyId id = copies_.into(running.origin.device, running.memory, to);
  ++copying_[running.origin.transfer];
  ++placing_[{running.peer, running.flow}];
  running_.emplace(id, std::move(running));
}

void IncomingSlices::place(PeerId peer, TransferId flow, const Layout& to, const Body& bytes) {
  messages_.push_back({peer, flow, to, bytes});
}

void IncomingSlices::advance() {
  while (!messages_.empty()) {
    const Small& small = messages_.front();
    const Origin origin = node_.landing_origin(small.peer, small.flow);
    Pieces memory, to;
    if (origin.device == kHost) {  // its transfer has ended: the GPU's memory is not touched
      messages_.pop_front();
      continue;
    }
    if (!take(kMessages, small.peer, small.flow, small.bytes.size(), true, memory)) return;
    const std::uint8_t* from = small.bytes.data();
    for (const Piece& piece : memory) {
      std::memcpy(reinterpret_cast<void*>(piece.address), from, piece.bytes);
      from += piece.bytes;
    }
    small.to.pieces(0, small.bytes.size(), to);
    start({small.peer, small.flow, small.bytes.size(), "inline", origin, std::move(memory),
           kMessages},
          to);
    messages_.pop_front();
  }
}

bool IncomingSlices::copied(CopyId id, const Status& status, TimeNs now) {
  const auto found = running_.find(id);
  if (found == running_.end()) return false;
  const Running done = std::move(found->second);
  running_.erase(found);
  give(done.link, done.memory);
  const auto transfer = copying_.find(done.origin.transfer);
  if (--transfer->second == 0) copying_.erase(transfer);
  const auto flow = placing_.find({done.peer, done.flow});
  if (--flow->second == 0) placing_.erase(flow);
  node_.placed(done.peer, done.flow, done.rail, done.fresh, status, now);
  return true;
}

void IncomingSlices::forget(LinkId link) {
  const auto slices = arriving_.find(link);
  if (slices == arriving_.end()) return;
  for (const Arriving& slice : slices->second) give(link, slice.memory);
  arriving_.erase(slices);
}

bool IncomingSlices::copying_segment(SegmentId segment) const {
  return std::any_of(running_.begin(), running_.end(),
                     [&](const auto& running) { return running.second.origin.segment == segment; });
}

}  // namespace tent
