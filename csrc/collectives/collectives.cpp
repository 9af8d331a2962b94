// Stage: collectives. Groups and their running collectives: see the header.
#include "collectives/collectives.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "collectives/notices.h"

namespace tent {

namespace {
// So many collectives may have messages on their way after they have ended for their caller. Beyond
// it, the caller waits: a rank that only sends cannot run ahead without bound.
constexpr std::size_t kLingeringMax = 64;

// The roll is called so long before a timeout that its answers are there in time; a short timeout
// may have to wait for them.
constexpr TimeNs kLead = RollCall::kPatience + 100 * kMillisecond;
constexpr TimeNs kFresh = RollCall::kPatience / 2;  // younger ones serve further collectives

TimeNs asking_time(const RankMap& ranks, TimeNs now, TimeNs expires) {
  if (expires == kNever || ranks.size > RollCall::kRanksMax) return kNever;
  return expires - std::min(kLead, (expires - now) / 2);
}

CollectiveShape shape_of(const RankMap& ranks, const TentCollectiveCall& call) {
  CollectiveShape shape{call.kind,  call.reduce, call.dtype, call.root,
                        ranks.rank, ranks.size,  {},         {}};
  for (std::size_t i = 0; i < call.input_count; ++i) shape.inputs.push_back(call.inputs[i].bytes);
  for (std::size_t i = 0; i < call.output_count; ++i)
    shape.outputs.push_back(call.outputs[i].bytes);
  return shape;
}

Buffers buffers_of(const TentCollectiveCall& call) {
  Buffers buffers{{}, {}, call.place, call.compute};
  for (std::size_t i = 0; i < call.input_count; ++i)
    buffers.inputs.push_back(call.inputs[i].address);
  for (std::size_t i = 0; i < call.output_count; ++i)
    buffers.outputs.push_back(call.outputs[i].address);
  return buffers;
}
}  // namespace

struct Collectives::Group final : Notices::Owner {
  Group(Collectives& collectives, GroupId number, RankMap map)
      : owner(collectives),
        id(number),
        ranks(std::move(map)),
        notices(collectives.transfers_, *this, ranks, ranks.context + 2) {}
  void heard(std::int32_t rank, const std::string& why, bool from_itself) override {
    if (from_itself && owner.on_abort) owner.on_abort(id, rank, why);
    owner.lost(*this, rank, why);
  }
  void quiet() override { owner.groups_.erase(id); }

  Collectives& owner;
  const GroupId id;
  const RankMap ranks;
  Notices notices;
  std::shared_ptr<RollCall> roll;  // the last one
  Status broken;                   // why it takes no more collectives
  bool removed = false, aborted = false;
};

struct Collectives::Running final : Execution {
  Running(Collectives& owner, CollectiveId number, std::shared_ptr<Group> where, std::string name,
          End then)
      : Execution(owner.transfers_, owner, where->ranks, std::move(name), number),
        id(number),
        group(std::move(where)),
        end(std::move(then)) {}
  const CollectiveId id;
  const std::shared_ptr<Group> group;
  End end;
  TimeNs asks_at = kNever;  // whether the others answer; kNever: it has asked, or never does
  std::shared_ptr<RollCall> roll;
};

Collectives::Collectives(Transfers& transfers, const Tuning& tuning)
    : transfers_(transfers), tuning_(tuning) {}

Collectives::~Collectives() = default;

GroupId Collectives::add_group(RankMap ranks) {
  const GroupId id = next_id_++;
  groups_.emplace(id, std::make_shared<Group>(*this, id, std::move(ranks)));
  return id;
}

const RankMap* Collectives::find_group(GroupId group) const {
  auto found = groups_.find(group);
  return found == groups_.end() || found->second->removed ? nullptr : &found->second->ranks;
}

void Collectives::remove_group(GroupId group) {
  if (find_group(group) == nullptr) return;
  const std::shared_ptr<Group> held = groups_.at(group);
  // What has ended for its caller still arrives.
  end_running(*held, {Code::Cancelled, "the process group was destroyed", ""}, false);
  held->removed = true;
  held->notices.close();
}

void Collectives::abort(GroupId group, const std::string& why) {
  auto found = groups_.find(group);
  if (found == groups_.end()) return;
  const std::shared_ptr<Group> held = found->second;
  const std::int32_t rank = held->ranks.rank;
  // The others would wait for this rank, in what it has left, until their own timeouts.
  if (!std::exchange(held->aborted, true))
    held->notices.tell_all(rank, "rank " + std::to_string(rank) + " has aborted the process group");
  end_running(*held, {Code::Cancelled, why, ""}, true);
}

// Ends what runs in the group, and refuses what comes later.
void Collectives::end_running(Group& group, const Status& why, bool also_lingering) {
  if (group.broken.ok()) group.broken = why;
  std::vector<CollectiveId> ids;  // ending one changes the map
  for (const auto& [id, running] : running_)
    if (running->group.get() == &group && (also_lingering || !running->is_settled()))
      ids.push_back(id);
  for (CollectiveId id : ids)
    if (auto found = running_.find(id); found != running_.end()) found->second->fail(why);
  for (const auto& [id, roll] : rolls_)
    if (roll.group.get() == &group) roll.call->end();
}

// Tells the others also what it was told itself: what ends here now is cancelled, and whoever hears
// of that must have heard of its cause before. A session's messages keep their order.
void Collectives::lost(Group& group, std::int32_t rank, const std::string& why) {
  if (!group.broken.ok()) return;
  group.notices.tell_all(rank, why);
  end_running(group, {Code::PeerLost, why, ""}, false);
}

CollectiveId Collectives::start(GroupId group, const TentCollectiveCall& call, End end) {
  auto refuse = [&](Status why) {
    Report report;
    report.status = std::move(why);
    report.started = report.ended = transfers_.now();
    end(std::move(report));
    return CollectiveId(0);
  };
  if (find_group(group) == nullptr)
    return refuse({Code::Failed, "the process group was destroyed", ""});
  const std::shared_ptr<Group> held = groups_.at(group);
  if (!held->broken.ok()) return refuse(held->broken);

  Status why;
  const std::shared_ptr<const Plan> plan = plans_.find(shape_of(held->ranks, call), tuning_, why);
  if (plan == nullptr) return refuse(std::move(why));
  const bool on_gpu = call.place.device != TENT_HOST;
  if (on_gpu && call.compute.scratch.bytes < plan->schedule.scratch_bytes)
    return refuse({Code::Failed, "it needs more scratch memory of the GPU", ""});
  Buffers buffers = buffers_of(call);

  held->notices.listen();
  const CollectiveId id = next_id_++;
  auto made =
      std::make_unique<Running>(*this, id, held, collective_name(call.kind), std::move(end));
  Running& running = *made;
  running_.emplace(id, std::move(made));
  if (lingering_ >= kLingeringMax) running.wait_for_all();
  const TimeNs now = transfers_.now(), expires = expiry(now, call.timeout_ns);
  running.asks_at = asking_time(held->ranks, now, expires);
  look_at_clock_by(on_gpu ? std::min(running.asks_at, expires) : running.asks_at);
  running.start(plan, std::move(buffers), {held->ranks.context + 1, call.tag, expires}, scratch_);
  return id;
}

std::uint64_t Collectives::scratch_bytes(GroupId group, const TentCollectiveCall& call) {
  const RankMap* ranks = find_group(group);
  if (ranks == nullptr) return 0;
  Status why;
  const auto plan = plans_.find(shape_of(*ranks, call), tuning_, why);
  return plan == nullptr ? 0 : plan->schedule.scratch_bytes;
}

void Collectives::computed(const TentStep& step, std::uint64_t stream, const Status& status) {
  if (auto found = running_.find(step.collective); found != running_.end())
    found->second->computed(step.number, stream, status);
}

void Collectives::listen(GroupId group) {
  if (find_group(group) != nullptr) groups_.at(group)->notices.listen();
}

void Collectives::cancel(CollectiveId id) {
  if (auto found = running_.find(id); found != running_.end() && !found->second->is_settled())
    found->second->fail({Code::Cancelled, "cancelled by its caller", ""});
}

void Collectives::rank_lost(Execution& execution) {
  const Running& running = static_cast<Running&>(execution);
  const CollectiveId id = running.id;
  const Status why = running.status();
  const std::shared_ptr<Group> group = running.group;
  lost(*group, running.lost_rank(), why.text);
  if (auto found = running_.find(id); found != running_.end()) found->second->fail(why);
}

void Collectives::settled(Execution& execution) {
  Running& running = static_cast<Running&>(execution);
  Report report;
  report.status = running.status();
  report.bytes = running.bytes();
  report.started = running.started();
  report.ended = transfers_.now();
  ++lingering_;  // until it is drained, mostly at once
  const End end = std::move(running.end);
  const std::shared_ptr<Group>& group = running.group;
  const bool asks = report.status.code == Code::Timeout && group->broken.ok() &&
                    group->ranks.size <= RollCall::kRanksMax;
  if (!asks) return end(std::move(report));
  const std::shared_ptr<RollCall> roll = running.roll ? running.roll : call_roll(group);
  roll->when_due([this, report, end](const std::string& found) {
    Report whole = report;
    whole.status.text += found;
    whole.ended = transfers_.now();
    end(std::move(whole));
  });
  look_at_clock_by(roll->due());
}

std::shared_ptr<RollCall> Collectives::call_roll(const std::shared_ptr<Group>& group) {
  if (group->roll && transfers_.now() - group->roll->started() < kFresh) return group->roll;
  const std::uint64_t id = next_id_++;
  group->roll = std::make_shared<RollCall>(transfers_, group->ranks, group->ranks.context + 2,
                                           [this, id] { rolls_.erase(id); });
  rolls_.emplace(id, Roll{group, group->roll});
  group->roll->start();
  return group->roll;
}

// Collectives that begin later mostly time out later, too, so this rarely sets the clock.
void Collectives::look_at_clock_by(TimeNs when) {
  if (when >= looks_at_) return;
  looks_at_ = when;
  transfers_.remind(when, [this] { look_at_clock(); });
}

void Collectives::look_at_clock() {
  looks_at_ = kNever;
  const TimeNs now = transfers_.now();
  TimeNs next = kNever;
  for (const auto& [id, running] : running_) {
    if (running->is_settled()) continue;
    if (now >= running->asks_at) {
      running->asks_at = kNever;
      running->roll = call_roll(running->group);
    }
    if (now >= running->gate_expires()) running->expire_at_gate();
    next = std::min({next, running->asks_at, running->gate_expires()});
  }
  for (const auto& [id, roll] : rolls_) {
    if (now >= roll.call->due()) roll.call->end();
    next = std::min(next, roll.call->due());
  }
  look_at_clock_by(next);
}

void Collectives::drained(Execution& execution) {
  --lingering_;
  auto found = running_.find(static_cast<Running&>(execution).id);
  const std::unique_ptr<Running> running = std::move(found->second);
  running_.erase(found);
}

}  // namespace tent
