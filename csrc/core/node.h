// Stage: engine, pure part. A Node is everything one process knows: its peers' sessions, its
// segments, the receives that wait for a match, and every transfer's state. A deterministic state
// machine: calls in, Outbox calls out, time as an argument; no thread, socket, clock or randomness.
// Called by one thread at a time (Engine holds its lock; the simulator has one thread).
// Outbox calls happen inside Node calls and must not call back into Node.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/layout.h"
#include "core/segments.h"
#include "core/settings.h"
#include "core/types.h"
#include "core/wire.h"

namespace tent {

struct LinkInfo {
  RailKind kind = RailKind::Tcp;
  std::string rail;      // e.g. "tcp 10.0.0.1>10.0.0.2", "cma", "shm"; stable over reconnects
  double rate_hint = 0;  // bytes per ns, 0: unknown
  std::uint64_t slice_bytes_max = 0;  // 0: the settings' value
  // The link writes into our memory by itself once it was told where (RDMA reads): what is under
  // way can only be stopped by closing it. Other transports ask Node::landing before every copy.
  bool places_by_itself = false;
};

struct RailShare {
  std::string rail;
  std::uint64_t bytes = 0;
  std::uint32_t slices = 0;
};

struct Report {  // what became of a transfer; Outbox::done hands it out exactly once
  TransferId id = 0;
  Status status;
  PeerId peer = kAnyPeer;  // the sender, for a receive
  std::uint64_t bytes = 0;
  TimeNs started = 0, ended = 0;
  std::vector<RailShare> rails;
  std::uint32_t retries = 0;  // slices that were sent again
  std::uint32_t twins = 0;    // slices that also went over a second link, because they were late
  std::uint32_t fences = 0;   // links fenced while this transfer had slices on them
  std::string path;           // why this path and not a faster one
};

struct Request {
  enum class Op : std::uint8_t { Send, Recv, Write, Read };
  Op op = Op::Send;
  TransferId id = 0;  // from Node::next_id()
  PeerId peer = kAnyPeer;
  std::uint64_t context = 0, tag = 0;  // Send, Recv: both must match, as must the peer
  std::uint32_t meta = 0;              // dtype code that both ends must agree on; 0: any
  Layout local;
  Target remote;  // Write, Read
  bool has_note = false;
  std::string note;  // Write
  Priority priority = Priority::Foreground;
  TimeNs expires = kNever;   // Timeout error at this time
  TimeNs deadline = kNever;  // earlier goes first
  RailKinds rails = kAllRails;
  // Its memory may not be touched before release(): work that was queued for it on a GPU goes
  // first. What the two ends have to say about the transfer is said meanwhile.
  bool held = false;
};

struct SliceEvent {  // for traces and pictures
  TransferId flow;
  LinkId link;
  std::uint64_t offset, bytes;
  TimeNs posted, ended;
  bool acked;  // false: lost with its link, will be sent again
};

class Outbox {
 public:
  virtual ~Outbox() = default;
  virtual void post(LinkId link, Frame frame) = 0;
  // Nothing may be received from, or read for, this link after the call returns.
  virtual void close(LinkId link, const Status& why) = 0;
  // A link that carried nothing for long is closed in the same way, and the peer is told why.
  virtual void rest(LinkId link) { close(link, {Code::Failed, "it carried nothing", ""}); }
  virtual void done(Report report) = 0;
  virtual void dial(PeerId peer,
                    RailKinds rails) = 0;  // rails are wanted; repeated until they come
  virtual void peer_lost(PeerId peer, const Status& why) = 0;
  virtual void noted(SegmentId segment) = 0;  // a notification was added
  virtual void traced(const SliceEvent& event) = 0;
  // Whether slices of this source memory can and should go over the link (asked once per flow and
  // link): false where the link cannot read it, or only by an extra copy that another link, of the
  // allowed kinds, saves. `landing`: the peer's GPU that the bytes go to, as the peer counts them.
  virtual bool reaches(LinkId link, const Layout& source, Device landing, RailKinds allowed) = 0;
  // Why a link that does not reach it never will; "" where it may.
  virtual std::string never_reaches(LinkId, const Layout& /*source*/, Device /*landing*/) {
    return "";
  }
  // Whether a link that places by itself is writing bytes of this flow at the moment.
  virtual bool placing(LinkId link, TransferId flow) = 0;
  // Whether the link has brought more than could be taken yet: then its sender does not wait for
  // us, and several slices are acknowledged together.
  virtual bool behind(LinkId) { return false; }
  // Whether the peer has let go of our memory: what links that are closed had named for it is not
  // being copied any more, and will not be.
  virtual bool quiet(PeerId) { return true; }
  // Copies bytes that came in a message into a GPU's memory; placed() is called afterwards. Only
  // for destinations that are not kHost.
  virtual void place(PeerId, TransferId /*flow*/, const Layout&, const Body&) {}
  // Whether copies into a GPU's memory go on for this flow of the peer's.
  virtual bool copying_in(PeerId, TransferId /*flow*/) const { return false; }
};

struct LinkStats {
  LinkId link;
  PeerId peer;
  LinkInfo info;
  std::uint64_t bytes_sent = 0, bytes_received = 0, slices_sent = 0, slices_received = 0;
  std::uint64_t retries = 0;
  double rate = 0;  // bytes per ns
  TimeNs base_latency = 0;
  std::uint64_t in_flight = 0, window = 0;
};

struct NodeStats {
  std::uint64_t transfers_done = 0, transfers_failed = 0, fences = 0, retries = 0, suspects = 0;
  std::uint64_t twins = 0;                    // slices that also went over a second link
  std::uint64_t outstanding = 0;              // transfers that have not ended
  std::uint64_t flows_in = 0, flows_out = 0;  // flows that are open on our side
  std::vector<LinkStats> links;
};

class Session;
class Matcher;

class Node {
 public:
  Node(const CoreSettings& settings, Outbox& outbox);
  ~Node();

  // ---- what the caller wants -----------------------------------------------------------------
  TransferId next_id();
  void submit(Request request, TimeNs now);  // its end is always an Outbox::done, maybe at once
  void cancel(TransferId id, Code code, TimeNs now);
  void fail(TransferId id, Status why, TimeNs now);
  void release(TransferId id, TimeNs now);  // of a request that is held
  Segments& segments();
  // Fails everything that touches the segment or these blocks. Nothing lands after the return; a
  // reader on this host may still copy out of it until `busy` says no (bounded).
  bool busy(SegmentId id) const;
  void close_segment(SegmentId id, TimeNs now);
  void revoke(SegmentId id, const std::vector<std::int64_t>& blocks, TimeNs now);

  // ---- peers and their links -------------------------------------------------------------------
  PeerId add_peer(const std::string& name);
  void lose_peer(PeerId peer, const Status& why, TimeNs now);  // ends every transfer with it
  void say_bye(TimeNs now);                                    // tells all peers that we close
  void link_up(PeerId peer, LinkId link, const LinkInfo& info, TimeNs now);
  void link_down(LinkId link, const Status& why, TimeNs now);  // the transport closed or lost it
  // The peer closed it because it carried nothing. False: it did carry something of ours.
  bool link_rested(LinkId link, TimeNs now);
  // Of these links the one that is idle for longest, and was before that time; 0: none.
  LinkId longest_idle(const std::vector<LinkId>& among, TimeNs before) const;
  void rest(LinkId link);  // closes one that is idle
  bool alive(PeerId peer) const;
  bool closed(PeerId peer) const;  // lost because it said that it closes: it never comes back
  // The control plane found no way to make such a rail: transfers that need one fail.
  void no_rails(PeerId peer, RailKinds rails, const std::string& why, TimeNs now);
  const std::string& name(PeerId peer) const;

  // ---- what the transports bring ---------------------------------------------------------------
  // Everything but a slice. False: malformed, the caller closes the link and calls link_down.
  bool frame(LinkId link, const FrameHeader& header, std::span<const std::uint8_t> body,
             TimeNs now);
  // A slice header arrived. False: malformed, as above. Once per slice, before its landing().
  bool slice(LinkId link, const FrameHeader& header, TimeNs now);
  // Where the bytes [offset, offset + length) of a flow go; asked again after every pause, so that
  // what was cancelled meanwhile is not touched. False: read and drop them.
  bool landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
               Pieces& out);
  // All payload bytes of the slice are in place; in the order of the slices on this link, though
  // later frames may have been brought before. False: checksum wrong, close the link.
  bool landed(LinkId link, const FrameHeader& header, TimeNs now);
  // The source bytes of one of our flows. False: it ended; send filler or nothing.
  bool source(TransferId flow, std::uint64_t offset, std::uint64_t length, Pieces& out) const;

  // ---- bytes that pass through host memory on their way from or to a GPU
  // -------------------------- kHost, too, for a flow that has ended.
  Origin source_origin(TransferId flow) const;
  Origin landing_origin(PeerId peer, TransferId flow) const;
  // Instead of landed(): the slice lies in `memory`, from where it is being copied into place.
  // `fresh`: how many of its bytes are news; placed() must be called for these.
  bool arrived(LinkId link, const FrameHeader& header, const Pieces& memory, std::uint64_t& fresh,
               TimeNs now);
  void placed(PeerId peer, TransferId flow, const std::string& rail, std::uint64_t fresh,
              const Status& status, TimeNs now);
  void source_failed(TransferId flow, const Status& status, TimeNs now);
  // A copy for a flow of the peer's has ended, whose slice is told by landed() or by nobody.
  void let_go(PeerId peer, TransferId flow);
  void ask_again();  // what links reach: they know more now

  // ---- time and output -------------------------------------------------------------------------
  // Sends acknowledgements and slices that are ready; call after a batch of calls above.
  void flush(TimeNs now);
  // Timeouts, overdue slices, probes. Returns when it wants to be called next.
  TimeNs tick(TimeNs now);
  NodeStats stats() const;

 private:
  friend class Session;
  struct Private;
  std::unique_ptr<Private> p_;
};

}  // namespace tent
