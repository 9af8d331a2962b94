// Stage: device. Slices whose bytes belong on a GPU: a transport puts them into host memory, and
// from there they are copied while the next ones come in.
// Called by Exchange inside the transports' calls and poll(); engine lock held. Tells the Node what
// has come and what is in place.
// What always holds: a copy begins only for a flow that is alive; whoever ends a flow can ask
// whether copies for it go on.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/node.h"
#include "device/arena.h"
#include "device/copies.h"

namespace tent {

class IncomingSlices {
 public:
  IncomingSlices(DeviceCopies& copies, PinnedArena& arena, Node& node)
      : copies_(copies), arena_(arena), node_(node) {}

  // What a link can do with a slice whose bytes belong on a GPU.
  enum class Way : std::uint8_t {
    MayWait,    // it can be told that there is no memory now
    Always,     // it always gets some, and its window bounds it
    MayDirect,  // the same, and its device may place the bytes into the GPU's memory itself
  };
  // A slice's header has come.
  void begin(LinkId link, PeerId peer, const FrameHeader& header, Way way);
  // A device is to place the bytes by itself: whether it may do so where `to` is, the GPU's memory,
  // which `reaches` is asked for. Then all of the slice goes there.
  bool directly(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
                const std::function<bool(Device)>& reaches);
  // All of the slice was placed so: the device. Forgets the slice.
  Device placed_directly(LinkId link, const FrameHeader& header);
  // ... or some of it was, and bytes came that a processor has to put there: it cannot.
  bool torn(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length);
  // Puts host memory in the place of a GPU's in `out`: none at all while there is none, and the
  // transport asks again. False: drop the bytes.
  bool landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
               Pieces& out);
  // All of the slice has come: whether it is intact. Nothing: it was none for a GPU, or nobody
  // wants it any more.
  std::optional<bool> landed(LinkId link, const FrameHeader& header, const std::string& rail,
                             TimeNs now);
  // Bytes that came in a message.
  void place(PeerId peer, TransferId flow, const Layout& to, const Body& bytes);
  void advance();  // copies those, where there is memory for them
  bool copied(CopyId id, const Status& status, TimeNs now);
  void forget(LinkId link);
  bool copying(TransferId transfer) const { return copying_.contains(transfer); }
  bool placing(PeerId peer, TransferId flow) const { return placing_.contains({peer, flow}); }
  bool copying_segment(SegmentId segment) const;
  bool waiting() const { return !messages_.empty(); }

 private:
  struct Arriving {  // over a link
    PeerId peer;
    TransferId flow;
    std::uint64_t offset, bytes;
    Origin origin;
    Way way;
    bool direct = false, torn = false;
    Pieces memory = {};
  };
  struct Running {  // to the GPU
    PeerId peer;
    TransferId flow;
    std::uint64_t fresh;
    std::string rail;
    Origin origin;
    Pieces memory;
    LinkId link;  // 0: it came in a message
  };
  struct Small {
    PeerId peer;
    TransferId flow;
    Layout to;
    Body bytes;
  };
  using OnLink = std::vector<Arriving>;

  bool take(LinkId link, PeerId peer, TransferId flow, std::uint64_t bytes, bool may_wait,
            Pieces& memory);
  void give(LinkId link, const Pieces& memory);
  void drop(LinkId link, const Arriving* slice);
  Arriving* find(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length);
  void start(Running running, const Pieces& to);

  DeviceCopies& copies_;
  PinnedArena& arena_;
  Node& node_;
  std::map<LinkId, OnLink> arriving_;
  std::unordered_map<CopyId, Running> running_;
  std::unordered_map<TransferId, std::size_t> copying_;
  std::map<std::pair<PeerId, TransferId>, std::size_t> placing_;
  std::unordered_map<LinkId, std::size_t> holding_;  // slices with memory
  std::deque<Small> messages_;
  std::set<std::pair<PeerId, TransferId>> never_directly_;  // flows that were torn
};

}  // namespace tent
