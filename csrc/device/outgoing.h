// Stage: device. Slices whose bytes lie on a GPU, on their way to a transport: each is copied to
// host memory first, many at a time, while earlier ones are being sent. A frame of a link waits
// until the slices before it have been copied, so that the link's order holds.
// Called by Exchange; engine lock held. May ask the Node, never changes it.
// What always holds: memory that a peer may still read from is not used again; a slice that was
// lost with its link is sent again from the memory where it already is.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/node.h"
#include "device/arena.h"
#include "device/copies.h"

namespace tent {

class OutgoingSlices {
 public:
  OutgoingSlices(DeviceCopies& copies, PinnedArena& arena, const Node& node, bool checksum)
      : copies_(copies), arena_(arena), node_(node), checksum_(checksum) {}

  // True: the frame was taken, and advance() gives it out once it may go. `direct`: its link can
  // read the GPU's memory itself.
  bool keep(LinkId link, Frame& frame, bool direct);
  bool sends_directly(LinkId link, TransferId flow, std::uint64_t offset) const;
  // Starts copies where there is memory for them. Appends frames that may go, in order, and flows
  // whose bytes cannot be had.
  void advance(std::vector<std::pair<LinkId, Frame>>& ready,
               std::vector<std::pair<TransferId, Status>>& failed);
  // The flow of a copy of ours; 0: it is none.
  TransferId flow_of(CopyId id) const {
    const auto found = running_.find(id);
    return found == running_.end() ? 0 : found->second.first;
  }
  // False: it is no copy of ours.
  bool copied(CopyId id, const Status& status);
  // Where the copied bytes of a slice lie.
  bool source(TransferId flow, std::uint64_t offset, std::uint64_t length, Pieces& out) const;
  // A slice has left its link: acknowledged, or lost with it.
  void left(LinkId link, TransferId flow, std::uint64_t offset, bool acknowledged);
  void forget(LinkId link);
  bool copying(TransferId transfer) const { return copying_.contains(transfer); }
  bool copying_segment(SegmentId segment) const;
  bool waiting() const { return !kept_.empty(); }

 private:
  using Key = std::pair<TransferId, std::uint64_t>;  // flow, offset
  struct Entry {
    enum class Stage : std::uint8_t { Waiting, Copying, Ready, Gone };
    LinkId link = 0;  // 0: it was lost, or never got to its link
    std::uint64_t bytes = 0;
    Origin origin;
    Stage stage = Stage::Waiting;
    Pieces memory;
    CopyId copy = 0;
  };

  bool start(const Key& key, Entry& entry, std::vector<std::pair<TransferId, Status>>& failed);
  bool may_go(Frame& frame);
  void drop(std::map<Key, Entry>::iterator entry);
  void sweep();

  DeviceCopies& copies_;
  PinnedArena& arena_;
  const Node& node_;
  const bool checksum_;
  std::map<Key, Entry> entries_;
  std::map<LinkId, std::map<Key, std::uint64_t>> direct_;  // that no copy is made of: their bytes
  std::map<LinkId, std::deque<Frame>> kept_;
  std::unordered_map<CopyId, Key> running_;
  std::unordered_map<TransferId, std::size_t> copying_;
  std::unordered_map<LinkId, std::size_t> holding_;  // slices with memory
  std::size_t strays_ = 0;                           // entries without a link
};

}  // namespace tent
