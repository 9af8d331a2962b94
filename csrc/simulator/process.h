// Stage: tests. One simulated process: a Node, its memory and segments, its clock, and whether it
// runs. Carries out what the Node says, after the call in which it said so.
// Owned by World; one thread. No call of the Node is made from inside another one.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/node.h"
#include "simulator/arena.h"
#include "simulator/exported.h"

namespace tent::sim {

struct World;

class Process final : public Outbox {
 public:
  Process(World& world, std::uint32_t index, Arena& arena);

  void start();  // a new incarnation, with fresh memory
  void end();    // the Node is gone, with everything it knew
  void stop() { stopped_ = true; }
  void resume() { stopped_ = false; }
  bool lives() const { return node_ != nullptr; }
  bool runs() const { return node_ != nullptr && !stopped_; }
  std::uint32_t index() const { return index_; }
  std::uint32_t generation() const { return generation_; }

  // Its own clock, which starts anywhere and runs a little fast or slow.
  TimeNs clock() const;
  TimeNs clock_at(TimeNs simulated) const;
  TimeNs simulated(TimeNs clock) const;  // the earliest moment at which clock() is not before it

  // Calls fn(node, clock); what the Node reported is seen to before the return.
  template <class Fn>
  auto call(Fn fn) {
    dirty_ = true;
    if constexpr (std::is_void_v<decltype(fn(*node_, TimeNs{}))>) {
      fn(*node_, clock());
      settle();
    } else {
      auto result = fn(*node_, clock());
      settle();
      return result;
    }
  }
  Node& node() { return *node_; }
  // After a batch of calls: flush, tick, and plan the next tick.
  void finish();
  bool dirty() const { return dirty_; }
  void touch() { dirty_ = true; }
  void tick_due();  // a planned tick has come

  std::uint32_t open_segment(bool cache);  // its place in `exported`, kNone: no room
  void close_segment(std::uint32_t exported);
  void revoke(std::uint32_t exported, const std::vector<std::uint32_t>& units);

  Arena& arena;
  std::vector<Exported> exported;
  bool said_bye = false;

  // ---- Outbox
  // ------------------------------------------------------------------------------------
  void post(LinkId link, Frame frame) override;
  void close(LinkId link, const Status& why) override;
  void done(Report report) override;
  void dial(PeerId peer, RailKinds rails) override;
  void peer_lost(PeerId peer, const Status& why) override;
  void noted(SegmentId segment) override;
  void traced(const SliceEvent& event) override;
  bool reaches(LinkId link, const Layout& source, Device landing, RailKinds allowed) override;
  bool placing(LinkId link, TransferId flow) override;
  bool behind(LinkId link) override;

 private:
  void settle();
  void take_notes(SegmentId segment);
  void see_to_withdrawn();

  World& world_;
  std::uint32_t index_;
  std::uint32_t generation_ = 0;
  std::unique_ptr<Node> node_;
  bool stopped_ = false, dirty_ = false;
  TimeNs clock_start_ = 0;
  std::int64_t clock_skew_ = 0;  // parts of 2^-20
  TimeNs tick_at_ = kNever, tick_planned_ = kNever;
  std::vector<Report> reports_;
  std::vector<std::pair<PeerId, Status>> lost_;
  std::vector<SegmentId> noted_;
  std::vector<std::uint32_t> withdrawn_;  // exported, with copies by readers on this host under way
};

}  // namespace tent::sim
