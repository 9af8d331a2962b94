// Stage: engine. What the two ends of a session say about transfers: offers, writes, reads,
// refusals, cancels; and the flows that follow. Turns calls and control messages into flows and
// ends. Pure; one thread. Owned by Session, which carries what it says.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/inbound.h"
#include "core/matcher.h"
#include "core/node.h"
#include "core/outbound.h"
#include "core/transfer_table.h"

namespace tent {

// Flow ids have this bit, requests (a reader's transfer ids) have not.
inline constexpr TransferId kFlowBit = TransferId(1) << 63;

struct SessionHost {  // what a session shares with the other sessions of its Node
  const CoreSettings& settings;
  Outbox& outbox;
  Segments& segments;
  Matcher& matcher;
  TransferTable& transfers;
  NodeStats& totals;
};

class Carrier {  // the session, as the dialogue sees it
 public:
  virtual ~Carrier() = default;
  // The message goes out with the next flush. With `flow`, it holds that flow's bytes; with `ends`,
  // the flow succeeds when the message has arrived.
  virtual void say(const Message& message, TransferId flow = 0, bool ends = false) = 0;
  // Takes back the bytes of a flow that were said but may not have arrived: a Cancel goes instead.
  virtual void unsay(TransferId flow) = 0;
  virtual void link_fenced_by_peer(LinkId link, TimeNs now) = 0;  // Fence
  virtual void link_is_fenced(LinkId link, TimeNs now) = 0;       // Fenced
  // Closes the links that are writing bytes of this flow into our memory by themselves: it was
  // stopped.
  virtual void stop_placing(TransferId flow, TimeNs now) = 0;
  // The peer does not answer: nothing may be sent to or received from it over today's links.
  virtual void cut_off(const std::string& why, TimeNs now) = 0;
  virtual void peer_closes() = 0;
};

class Dialogue {
 public:
  Dialogue(SessionHost host, PeerId peer, Carrier& carrier);

  // ---- calls ----
  void submit(Transfer& transfer, TimeNs now);
  void say_accept(const Transfer& receive);
  void accept(Transfer& receive, Offer offer, TimeNs now);  // it was matched
  void cancel(Transfer& transfer, Status why, TimeNs now);
  void release(Transfer& transfer, TimeNs now);  // its memory may be touched from now on
  void patience_ended(Transfer& transfer, TimeNs now);
  void tick(TimeNs now);
  // Stops everything that touches the segment, or these blocks of it.
  void drop_segment(SegmentId segment, const std::vector<std::int64_t>* blocks,
                    const std::string& why, TimeNs now);
  // Whether a reader may still be copying out of a segment that was closed to it.
  bool cancelling_reads_of(SegmentId segment) const;
  void no_rails(RailKinds up, RailKinds rails, const std::string& why, TimeNs now);
  // A flow of ours has ended: with Done, or when its inline message arrived, or in an error.
  void finish(TransferId flow, Status status, TimeNs now);

  // ---- from the peer ----
  void on_message(Message message, TimeNs now);
  bool on_open(TransferId flow, Opening opening, TimeNs now);  // false: malformed
  void on_landed(const std::string& rail, TransferId flow, std::uint64_t offset,
                 std::uint64_t length, TimeNs now);
  // Bytes that had arrived were copied into a GPU's memory, or could not be.
  void on_placed(const std::string& rail, TransferId flow, std::uint64_t fresh,
                 const Status& status, TimeNs now);
  void say_owed(TransferId flow);  // what had to wait for copies, if none go on any more
  // The bytes of a flow of ours could not be copied out of a GPU's memory.
  void source_failed(TransferId flow, const Status& status, TimeNs now);
  void peer_took(std::uint64_t eager_bytes);  // from a header
  std::uint64_t eager_consumed() const { return eager_consumed_; }

  OutboundFlows out;
  InboundFlows in;

 private:
  void submit_send(Transfer& transfer);
  void submit_write(Transfer& transfer);
  void submit_read(Transfer& transfer);
  Outbound& new_flow(Transfer* transfer, Layout source);
  bool may_inline(const Request& request) const;

  void on_offer(Message& message, TimeNs now);
  void on_write(Message& message, TimeNs now);
  void on_read(Message& message, TimeNs now);
  void on_read_data(Message& message, TimeNs now);
  void on_refuse(const Message& message, TimeNs now);
  void on_cancel(const Message& message, TimeNs now);
  void on_cancelled(const Message& message, TimeNs now);
  void say(MessageKind kind, std::uint64_t id);
  void refuse(std::uint64_t id, Code code, const std::string& why);
  void note(SegmentId segment, std::string payload);
  void complete(Inbound& inbound, TimeNs now);
  void stop_inbound(TransferId flow, TimeNs now);
  void place(const Inbound& inbound, const Body& bytes);
  // Says it once no copy into the flow's destination goes on any more.
  void say_when_placed(TransferId flow, const Message& message);
  void end(TransferId transfer, Status status, TimeNs now);

  SessionHost host_;
  PeerId peer_;
  Carrier& carrier_;
  std::uint64_t next_flow_ = 1;
  std::multimap<TransferId, Message> owed_;  // say_when_placed()
  std::uint64_t eager_sent_ = 0,
                eager_taken_ = 0;     // inline bytes: ours, and what of them was taken
  std::uint64_t eager_consumed_ = 0;  // the peer's inline bytes that receives took
};

}  // namespace tent
