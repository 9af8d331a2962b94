// Stage: collectives. Runs one schedule: starts each step when those it waits for have ended, does
// the reductions and copies itself. Made by Collectives, runs on Transfers. Under the engine lock.
// What always holds: `settled` once, when no transfer touches the caller's memory any more; then
// `drained` once, when none is left at all and the Execution may go. Sends out of scratch memory do
// not keep the caller waiting: he may go on while they are on their way.
// On a GPU nothing begins before the caller's stream has come so far; somebody else computes, and a
// step is over when the GPU has done it; the scratch memory is the caller's too.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/algorithms.h"
#include "collectives/scratch.h"
#include "engine/transfers.h"

namespace tent {

// A schedule with what its execution needs to know beforehand: who waits for whom, from both sides.
struct Plan {
  explicit Plan(Schedule made);
  Schedule schedule;
  std::vector<std::uint32_t> waits_for;        // per step: how many steps
  std::vector<std::uint32_t> first_successor;  // per step, and one past the last
  std::vector<std::uint32_t> successors;
  std::uint32_t awaited = 0;  // steps that the caller waits for
  bool is_awaited(const Step& step) const {
    return step.kind != StepKind::Send || step.left.space != Space::Scratch;
  }
};

// Training repeats the same few calls: their schedules are kept.
class PlanCache {
 public:
  // Null, with `why`, when the call makes no sense.
  std::shared_ptr<const Plan> find(const CollectiveShape& shape, const Tuning& tuning, Status& why);

 private:
  static constexpr std::size_t kKept = 32, kStepsMax = 4096;
  struct Entry {
    CollectiveShape shape;
    std::shared_ptr<const Plan> plan;
  };
  std::vector<Entry> entries_;
  std::size_t oldest_ = 0;
};

struct Buffers {  // addresses of the caller's memory, by index
  std::vector<std::uint64_t> inputs, outputs;
  TentPlace place{TENT_HOST, 0};
  TentCompute compute{};  // on a GPU
};

class Execution {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    // A rank was found lost; the owner calls fail(). May destroy it.
    virtual void rank_lost(Execution& execution) = 0;
    virtual void settled(Execution& execution) = 0;
    virtual void drained(Execution& execution) = 0;  // may destroy it
  };
  // What the messages of this collective have in common.
  struct Mail {
    std::uint64_t context = 0, tag = 0;  // the tag's upper bits; the channel makes the lower ones
    TimeNs expires = kNever;
  };

  Execution(Transfers& transfers, Owner& owner, const RankMap& ranks, std::string name,
            std::uint64_t id);
  ~Execution();
  // Both may settle and drain before they return.
  void start(std::shared_ptr<const Plan> plan, Buffers buffers, const Mail& mail, Scratch& scratch);
  void fail(const Status& why);
  // A step that was given to TentCompute is queued on this stream, or it failed.
  void computed(std::uint32_t step, std::uint64_t stream, const Status& status);

  const Status& status() const { return status_; }
  std::int32_t lost_rank() const { return lost_rank_; }  // -1: none
  std::uint64_t bytes() const { return bytes_; }         // received
  TimeNs started() const { return started_; }
  bool is_settled() const { return settled_; }
  // When to fail it, if the caller's stream has not come so far; kNever: it has.
  void expire_at_gate();
  TimeNs gate_expires() const { return gate_.closed ? mail_.expires : kNever; }
  // Also the sends out of scratch memory keep the caller waiting: too many are under way already.
  void wait_for_all() { wait_for_all_ = true; }

 private:
  struct Gate final : Continuation {  // the caller's stream
    Execution* execution = nullptr;
    bool closed = false;
    void ended(TransferId, const Report& report) override { execution->reached(report.status); }
  };
  struct Flight final : Continuation {  // a step that is a transfer, or is computed on a GPU
    Execution* execution = nullptr;
    std::uint32_t step = 0;
    TransferId id = 0;
    bool flying = false;
    void ended(TransferId transfer, const Report& report) override;
  };

  void advance();
  void reached(const Status& status);
  void begin(std::uint32_t step);
  Flight& take_off(std::uint32_t step);
  void give_away(std::uint32_t step);
  void do_here(const Step& step);
  bool on_gpu() const { return buffers_.place.device != TENT_HOST; }
  void complete(std::uint32_t step);
  void flight_ended(Flight& flight, const Report& report);
  void describe(const Step& step, const Status& cause);
  std::string where() const;
  void settle_if_due();
  std::uint64_t address(const Place& place) const;
  bool touches_caller(const Step& step) const;

  Transfers& transfers_;
  Owner& owner_;
  const RankMap& ranks_;
  const std::string name_;
  const std::uint64_t id_;
  std::shared_ptr<const Plan> plan_;
  Buffers buffers_;
  Mail mail_;
  Scratch* scratch_pool_ = nullptr;
  Scratch::Block scratch_;
  std::vector<std::uint32_t> waits_for_, ready_;
  Gate gate_;
  std::vector<Flight> flights_;  // by step
  std::size_t next_ready_ = 0;
  std::uint32_t left_ = 0;           // steps that are not done
  std::uint32_t awaited_ = 0;        // of them, those the caller waits for
  std::uint32_t flying_ = 0;         // transfers, steps on a GPU, and the gate
  std::uint32_t flying_caller_ = 0;  // of them, those that touch the caller's memory
  std::uint64_t bytes_ = 0;
  TimeNs started_ = 0;
  Status status_;
  std::int32_t lost_rank_ = -1;
  bool settled_ = false, advancing_ = false, wait_for_all_ = false;
};

}  // namespace tent
