// Stage: engine. Everything between us and one incarnation of a peer: carries the dialogue's
// control messages and slices over whatever links are alive, checks what arrives, and fences links
// that died or are suspect. Pure; one thread. Owned by Node.
#pragma once

#include <functional>
#include <string>

#include "core/control_stream.h"
#include "core/dialogue.h"
#include "core/link_set.h"
#include "core/node.h"
#include "core/silence.h"

namespace tent {

class Session final : private Carrier {
 public:
  Session(SessionHost host, PeerId peer, std::string name);

  Dialogue& dialogue() { return dialogue_; }
  const Dialogue& dialogue() const { return dialogue_; }
  const std::string& name() const { return name_; }
  bool peer_closed() const { return peer_closed_; }
  void say_bye();
  // Transfers that wait for this peer, +1 and -1: without any, silence means nothing.
  void interest(int change, TimeNs now);
  bool waits() const;
  TimeNs silent_for(TimeNs now) const;

  void ask_again();  // what the links reach
  void link_up(LinkId link, const LinkInfo& info, TimeNs now);
  void link_down(LinkId link, TimeNs now);
  // An idle link is closed without a fence: nothing of ours is on its way, and the peer, who may
  // have begun to use it, asks for one. False: what was on its way here is lost, and is fenced.
  void rest(LinkId link);
  bool link_rested(LinkId link, TimeNs now);
  TimeNs idle_since(LinkId link) const;  // kNever: it is in use, or wanted soon
  void close_links(const Status& why);
  RailKinds kinds() const { return links_.kinds(); }
  std::vector<LinkId> links() const;

  // What the transports bring; see Node.
  bool frame(LinkId link, const FrameHeader& header, std::span<const std::uint8_t> body,
             TimeNs now);
  bool slice(LinkId link, const FrameHeader& header, TimeNs now);
  bool landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
               Pieces& out);
  bool landed(LinkId link, const FrameHeader& header, TimeNs now);
  bool arrived(LinkId link, const FrameHeader& header, const Pieces& memory, std::uint64_t& fresh,
               TimeNs now);

  void flush(TimeNs now);
  TimeNs tick(TimeNs now);
  void add_stats(NodeStats& stats) const;

 private:
  // Carrier
  void say(const Message& message, TransferId flow, bool ends) override;
  void unsay(TransferId flow) override;
  void link_fenced_by_peer(LinkId link, TimeNs now) override;
  void link_is_fenced(LinkId link, TimeNs now) override;
  void stop_placing(TransferId flow, TimeNs now) override;
  void cut_off(const std::string& why, TimeNs now) override;
  void peer_closes() override { peer_closed_ = true; }

  bool heard(Link& link, const FrameHeader& header, TimeNs now);
  void took(Link& link, std::uint64_t bytes, TimeNs now);  // a slice
  Transfer* transfer_of(TransferId flow);                  // null: ended, or an answer to a read
  void on_acked(Link& link, const Unacked& frame, TimeNs now);
  bool on_control(const FrameHeader& header, std::span<const std::uint8_t> body, TimeNs now);
  void suspect(LinkId link, const std::string& why, TimeNs now);

  void post(Link& link, Frame frame, Unacked unacked, TimeNs now);
  void post_control(TimeNs now);
  void post_slices(TimeNs now);
  void post_slice(Link& link, Outbound& outbound, SliceSpan span, std::uint8_t flags, Twin twin,
                  TimeNs now);
  void post_twins(TimeNs now);
  bool post_twin(Link& link, TimeNs now);
  // The other one of a slice that is on two links, and its link.
  struct Other {
    Link* link = nullptr;
    Unacked* frame = nullptr;
  };
  Other twin_of(const Link& link, const Unacked& frame);
  void twin_arrived(Link& link, const Unacked& frame);  // `frame` did: the other one is in vain
  void twin_lost(const Link& link, const Unacked& frame);
  void post_acks(TimeNs now);
  bool may_carry(LinkId link, TransferId flow);
  void probe(TimeNs now);
  void ask_for_rails(TimeNs now);
  void wake_rails();
  TimeNs rest_idle(TimeNs now);
  void forget_rested(LinkId link);
  TimeNs keep_alive(TimeNs now);
  void give_up_unreachable(TimeNs now);

  SessionHost host_;
  PeerId peer_;
  std::string name_;
  LinkSet links_;
  ControlStream control_;
  Dialogue dialogue_;
  std::uint64_t eager_consumed_said_ = 0;
  TimeNs eager_said_by_ = kNever;  // what is not said yet may wait for a frame until then
  int interest_ = 0;
  Silence silence_;
  TimeNs next_dial_ = 0, next_probe_ = 0;
  RailKinds resting_ = 0;  // of links that were closed because they carried nothing
  bool peer_closed_ = false;
};

}  // namespace tent
