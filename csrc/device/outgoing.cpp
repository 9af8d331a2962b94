// Stage: device. See outgoing.h.
#include "device/outgoing.h"

#include <algorithm>

#include "core/crc32c.h"

namespace tent {

bool OutgoingSlices::keep(LinkId link, Frame& frame, bool direct) {
  const auto waiting = kept_.find(link);
  const FrameHeader& header = frame.header;
  if (header.kind == FrameKind::Ack) return false;  // has no place in the order
  const Origin origin =
      header.kind == FrameKind::Slice ? node_.source_origin(header.flow) : Origin{};
  if (origin.device == kHost && waiting == kept_.end()) return false;
  const Key key{header.flow, header.offset};
  // One that was copied already goes from there, and none overtakes those that wait.
  if (direct && waiting == kept_.end() && !entries_.contains(key)) {
    direct_[link].insert_or_assign(key, header.body_bytes);
    return false;
  }
  if (origin.device != kHost) {
    const auto [found, fresh] = entries_.try_emplace(key);
    Entry& entry = found->second;
    if (fresh) {
      entry.bytes = header.body_bytes;
      entry.origin = origin;
    } else if (entry.link == 0) {
      --strays_;
    }
    entry.link = link;
    if (!entry.memory.empty()) ++holding_[link];
  }
  kept_[link].push_back(std::move(frame));
  return true;
}

void OutgoingSlices::advance(std::vector<std::pair<LinkId, Frame>>& ready,
                             std::vector<std::pair<TransferId, Status>>& failed) {
  if (strays_ != 0) sweep();
  for (auto link = kept_.begin(); link != kept_.end();) {
    std::deque<Frame>& frames = link->second;
    for (const Frame& frame : frames) {
      if (frame.header.kind != FrameKind::Slice) continue;
      const auto entry = entries_.find({frame.header.flow, frame.header.offset});
      if (entry == entries_.end() || entry->second.stage != Entry::Stage::Waiting) continue;
      if (!start(entry->first, entry->second, failed)) break;
    }
    while (!frames.empty() && may_go(frames.front())) {
      ready.emplace_back(link->first, std::move(frames.front()));
      frames.pop_front();
    }
    link = frames.empty() ? kept_.erase(link) : std::next(link);
  }
}

// False: there is no memory now.
bool OutgoingSlices::start(const Key& key, Entry& entry,
                           std::vector<std::pair<TransferId, Status>>& failed) {
  Pieces bytes;
  if (!node_.source(key.first, key.second, entry.bytes, bytes)) {
    entry.stage = Entry::Stage::Gone;  // its transfer has ended: the GPU is not asked for it
    return true;
  }
  const bool must = holding_[entry.link] == 0;
  if (!arena_.take(entry.bytes, must, entry.memory)) {
    if (!must) return false;
    entry.stage = Entry::Stage::Gone;
    failed.emplace_back(key.first, Status{Code::Failed, arena_.why(), ""});
    return true;
  }
  ++holding_[entry.link];
  entry.copy = copies_.out_of(entry.origin.device, bytes, entry.memory);
  entry.stage = Entry::Stage::Copying;
  running_.emplace(entry.copy, key);
  ++copying_[entry.origin.transfer];
  return true;
}

bool OutgoingSlices::may_go(Frame& frame) {
  FrameHeader& header = frame.header;
  if (header.kind != FrameKind::Slice) return true;
  const auto found = entries_.find({header.flow, header.offset});
  if (found == entries_.end()) return true;  // of a host's memory, behind others
  const Entry& entry = found->second;
  if (entry.stage == Entry::Stage::Waiting || entry.stage == Entry::Stage::Copying) return false;
  if (checksum_ && entry.stage == Entry::Stage::Ready) {
    header.flags |= kHasCrc;
    header.crc = crc32c(entry.memory);
  }
  return true;
}

bool OutgoingSlices::copied(CopyId id, const Status& status) {
  const auto running = running_.find(id);
  if (running == running_.end()) return false;
  const auto found = entries_.find(running->second);
  running_.erase(running);
  Entry& entry = found->second;
  const auto count = copying_.find(entry.origin.transfer);
  if (--count->second == 0) copying_.erase(count);
  entry.stage = status.ok() ? Entry::Stage::Ready : Entry::Stage::Gone;
  return true;
}

bool OutgoingSlices::source(TransferId flow, std::uint64_t offset, std::uint64_t length,
                            Pieces& out) const {
  auto found = entries_.upper_bound({flow, offset});
  if (found == entries_.begin()) return false;
  --found;
  const auto& [key, entry] = *found;
  if (key.first != flow || entry.stage != Entry::Stage::Ready) return false;
  std::uint64_t skip = offset - key.second;
  if (skip > entry.bytes || length > entry.bytes - skip) return false;
  for (const Piece& piece : entry.memory) {
    const std::uint64_t passed = std::min(skip, piece.bytes);
    const std::uint64_t taken = std::min(length, piece.bytes - passed);
    if (taken != 0) out.push_back({piece.address + passed, taken});
    skip -= passed;
    length -= taken;
  }
  return true;
}

bool OutgoingSlices::sends_directly(LinkId link, TransferId flow, std::uint64_t offset) const {
  const auto slices = direct_.find(link);
  if (slices == direct_.end()) return false;
  const auto after = slices->second.upper_bound({flow, offset});
  if (after == slices->second.begin()) return false;
  const auto& [key, bytes] = *std::prev(after);
  return key.first == flow && offset - key.second < bytes;
}

void OutgoingSlices::left(LinkId link, TransferId flow, std::uint64_t offset, bool acknowledged) {
  const auto slices = direct_.find(link);
  if (slices != direct_.end() && slices->second.erase({flow, offset}) != 0) return;
  const auto found = entries_.find({flow, offset});
  if (found == entries_.end() || found->second.link == 0) return;
  Entry& entry = found->second;
  // A peer that acknowledges what was never sent must not make us use memory that a GPU writes to.
  const bool copying = entry.stage == Entry::Stage::Copying;
  if ((acknowledged && !copying) || entry.stage == Entry::Stage::Waiting) return drop(found);
  // The peer may still be reading the memory over the link that is gone. It says when it is not,
  // and then the Node sends the slice again; or else its flow ends.
  if (!entry.memory.empty() && --holding_[entry.link] == 0) holding_.erase(entry.link);
  entry.link = 0;
  ++strays_;
}

void OutgoingSlices::forget(LinkId link) {
  kept_.erase(link);
  direct_.erase(link);
}

void OutgoingSlices::drop(std::map<Key, Entry>::iterator found) {
  Entry& entry = found->second;
  if (entry.link == 0) {
    --strays_;
  } else if (!entry.memory.empty() && --holding_[entry.link] == 0) {
    holding_.erase(entry.link);
  }
  arena_.give(entry.memory);
  entries_.erase(found);
}

// Those whose flow has ended will not be sent again.
void OutgoingSlices::sweep() {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto next = std::next(entry);
    if (entry->second.link == 0 && entry->second.stage != Entry::Stage::Copying &&
        node_.source_origin(entry->first.first).device == kHost) {
      drop(entry);
    }
    entry = next;
  }
}

bool OutgoingSlices::copying_segment(SegmentId segment) const {
  return std::any_of(running_.begin(), running_.end(), [&](const auto& running) {
    return entries_.at(running.second).origin.segment == segment;
  });
}

}  // namespace tent
