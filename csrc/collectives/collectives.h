// Stage: collectives. The process groups of one engine and the collectives that run in them, many
// at a time. Called by the engine (its C function table); it starts and hears of transfers through
// Transfers. Thread: everything under the engine lock, no lock of its own.
// What always holds: a collective ends exactly once, and then nothing touches the caller's memory
// any more; when one of its transfers fails it ends with an error that names the rank, and the rest
// is cancelled. Who finds a rank lost tells the group, so that ranks that wait for others fail too.
//
// A group owns four contexts: its own (sends and receives of the caller), + 1 (messages of
// collectives), + 2 (notices of lost ranks), + 3 (free for the tensor API).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>

#include "collectives/algorithms.h"
#include "collectives/execution.h"
#include "collectives/roll_call.h"
#include "collectives/scratch.h"
#include "core/node.h"
#include "engine/c_api.h"
#include "engine/transfers.h"

namespace tent {

using GroupId = std::uint64_t;
using CollectiveId = std::uint64_t;

inline constexpr std::uint64_t kContextsPerGroup = 4;

class Collectives final : private Execution::Owner {
 public:
  explicit Collectives(Transfers& transfers, const Tuning& tuning = {});
  ~Collectives() override;

  GroupId add_group(RankMap ranks);
  // What still runs in it ends with an error, as in abort.
  void remove_group(GroupId group);
  // Ends the group's collectives with Cancelled; new ones are refused with the same words. The
  // other ranks hear of it as of a lost rank: this one will not go on.
  void abort(GroupId group, const std::string& why);
  const RankMap* find_group(GroupId group) const;

  // Runs the call. `end` is called once, maybe before this returns; it must not call back.
  // An impossible call, an unknown or a broken group end it at once with the reason. An error after
  // the timeout says who of the group does not answer: they are asked shortly before it.
  using End = std::function<void(Report)>;
  CollectiveId start(GroupId group, const TentCollectiveCall& call, End end);
  // Its end still comes, with Cancelled, when nothing touches its memory any more.
  void cancel(CollectiveId id);

  // Memory of the GPU that the call needs for its execution; 0 for one that is refused.
  std::uint64_t scratch_bytes(GroupId group, const TentCollectiveCall& call);
  // A step that TentCompute was given: see c_api.h.
  void computed(const TentStep& step, std::uint64_t stream, const Status& status);

  // From now on it is heard when a rank aborts the group.
  void listen(GroupId group);
  // A rank has aborted the group: it takes no more messages. Called from a continuation.
  std::function<void(GroupId, std::int32_t rank, const std::string& why)> on_abort;

  // Collectives that have ended for their caller, but whose last messages are still on their way:
  // before the engine closes it gives them a moment.
  std::size_t lingering() const { return lingering_; }

 private:
  struct Group;
  struct Running;
  struct Roll {
    std::shared_ptr<Group> group;
    std::shared_ptr<RollCall> call;
  };

  void rank_lost(Execution& execution) override;
  void settled(Execution& execution) override;
  void drained(Execution& execution) override;
  void end_running(Group& group, const Status& why, bool also_lingering);
  std::shared_ptr<RollCall> call_roll(const std::shared_ptr<Group>& group);
  void look_at_clock_by(TimeNs when);
  void look_at_clock();
  void lost(Group& group, std::int32_t rank, const std::string& why);

  Transfers& transfers_;
  const Tuning tuning_;
  Scratch scratch_;
  PlanCache plans_;
  std::unordered_map<GroupId, std::shared_ptr<Group>> groups_;
  std::unordered_map<CollectiveId, std::unique_ptr<Running>> running_;
  std::unordered_map<std::uint64_t, Roll> rolls_;  // until their transfers have ended
  TimeNs looks_at_ = kNever;
  std::size_t lingering_ = 0;
  std::uint64_t next_id_ = 1;
};

}  // namespace tent
