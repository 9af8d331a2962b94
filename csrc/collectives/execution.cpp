// Stage: collectives. Runs one schedule: see the header.
#include "collectives/execution.h"

#include <cstring>
#include <set>
#include <utility>

#include "collectives/reduce.h"

namespace tent {

namespace {

void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(address); }

std::string in_seconds(TimeNs time) {
  const std::string milliseconds = std::to_string(time / kMillisecond % 1000);
  return std::to_string(time / kSecond) + "." + std::string(3 - milliseconds.size(), '0') +
         milliseconds + " s";
}

}  // namespace

Plan::Plan(Schedule made) : schedule(std::move(made)) {
  const std::size_t count = schedule.steps.size();
  waits_for.resize(count);
  first_successor.assign(count + 1, 0);
  for (std::uint32_t earlier : schedule.edges) ++first_successor[earlier + 1];
  for (std::size_t i = 0; i < count; ++i) first_successor[i + 1] += first_successor[i];
  successors.resize(schedule.edges.size());
  std::vector<std::uint32_t> filled(first_successor.begin(), first_successor.end() - 1);
  for (std::uint32_t i = 0; i < count; ++i) {
    const Step& step = schedule.steps[i];
    waits_for[i] = step.edge_count;
    for (std::uint32_t earlier : schedule.after(step)) successors[filled[earlier]++] = i;
    awaited += is_awaited(step);
  }
}

std::shared_ptr<const Plan> PlanCache::find(const CollectiveShape& shape, const Tuning& tuning,
                                            Status& why) {
  for (const Entry& entry : entries_)
    if (entry.shape == shape) return entry.plan;
  Schedule schedule;
  why = plan(shape, tuning, schedule);
  if (!why.ok()) return nullptr;
  auto made = std::make_shared<const Plan>(std::move(schedule));
  if (made->schedule.steps.size() > kStepsMax) return made;
  if (entries_.size() < kKept) {
    entries_.push_back({shape, made});
  } else {
    entries_[oldest_] = {shape, made};
    oldest_ = (oldest_ + 1) % kKept;
  }
  return made;
}

Execution::Execution(Transfers& transfers, Owner& owner, const RankMap& ranks, std::string name,
                     std::uint64_t id)
    : transfers_(transfers), owner_(owner), ranks_(ranks), name_(std::move(name)), id_(id) {}

Execution::~Execution() {
  if (scratch_pool_ != nullptr) scratch_pool_->give_back(std::move(scratch_));
}

void Execution::start(std::shared_ptr<const Plan> plan, Buffers buffers, const Mail& mail,
                      Scratch& scratch) {
  plan_ = std::move(plan);
  buffers_ = std::move(buffers);
  mail_ = mail;
  started_ = transfers_.now();
  if (!on_gpu()) {
    scratch_pool_ = &scratch;
    scratch_ = scratch.take(plan_->schedule.scratch_bytes);
  }
  const std::size_t count = plan_->schedule.steps.size();
  waits_for_ = plan_->waits_for;
  flights_ = std::vector<Flight>(count);
  left_ = std::uint32_t(count);
  wait_for_all_ |= on_gpu();
  awaited_ = wait_for_all_ ? left_ : plan_->awaited;
  ready_.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i)
    if (waits_for_[i] == 0) ready_.push_back(i);
  if (!on_gpu()) return advance();
  gate_.execution = this;
  gate_.closed = true;
  ++flying_;
  transfers_.after(Device(buffers_.place.device), buffers_.place.stream, &gate_);
}

void Execution::expire_at_gate() {
  fail({Code::Timeout,
        where() + ": Timed out after " + in_seconds(transfers_.now() - started_) +
            ", waiting for the work that was queued on the GPU's stream before the call",
        ""});
}

void Execution::reached(const Status& status) {
  gate_.closed = false;
  --flying_;
  if (!status.ok() && status_.ok()) status_ = {status.code, where() + ": " + status.text, ""};
  advance();
}

void Execution::fail(const Status& why) {
  if (status_.ok()) status_ = why;
  for (Flight& flight : flights_)
    if (flight.flying && flight.id != 0) transfers_.cancel(flight.id);
  if (!advancing_) settle_if_due();
}

std::uint64_t Execution::address(const Place& place) const {
  switch (place.space) {
    case Space::Input:
      return buffers_.inputs[place.index] + place.offset;
    case Space::Output:
      return buffers_.outputs[place.index] + place.offset;
    case Space::Scratch:
      break;
  }
  return (on_gpu() ? buffers_.compute.scratch.address : scratch_.address()) + place.offset;
}

bool Execution::touches_caller(const Step& step) const {
  return on_gpu() || (step.kind == StepKind::Send ? step.left : step.to).space != Space::Scratch;
}

void Execution::advance() {
  if (advancing_) return;
  advancing_ = true;
  while (status_.ok() && !gate_.closed && next_ready_ < ready_.size()) begin(ready_[next_ready_++]);
  advancing_ = false;
  settle_if_due();
}

void Execution::begin(std::uint32_t number) {
  const Schedule& schedule = plan_->schedule;
  const Step& step = schedule.steps[number];
  if (step.kind == StepKind::Send || step.kind == StepKind::Recv) {
    Flight& flight = take_off(number);
    const PeerId peer = ranks_.peers[std::size_t(step.peer)];
    const std::uint64_t tag = mail_.tag << kChannelBits | step.channel;
    const bool is_send = step.kind == StepKind::Send;
    const Memory memory{address(is_send ? step.left : step.to), step.bytes,
                        Device(buffers_.place.device)};
    flight.id = is_send ? transfers_.send(peer, mail_.context, tag, memory, mail_.expires, &flight)
                        : transfers_.recv(peer, mail_.context, tag, memory, mail_.expires, &flight);
    return;
  }
  const bool is_nothing =
      step.bytes == 0 || (step.kind == StepKind::Copy && address(step.to) == address(step.left));
  if (!is_nothing && on_gpu()) return give_away(number);
  if (!is_nothing) do_here(step);
  complete(number);
}

Execution::Flight& Execution::take_off(std::uint32_t number) {
  Flight& flight = flights_[number];
  flight.execution = this;
  flight.step = number;
  flight.flying = true;
  ++flying_;
  flying_caller_ += touches_caller(plan_->schedule.steps[number]);
  return flight;
}

void Execution::give_away(std::uint32_t number) {
  const Schedule& schedule = plan_->schedule;
  const Step& step = schedule.steps[number];
  take_off(number);
  const std::int32_t kind = step.kind == StepKind::Reduce   ? TENT_COMBINE
                            : step.kind == StepKind::Divide ? TENT_DIVIDE
                                                            : TENT_COPY;
  const TentStep given{kind,
                       schedule.reduce,
                       schedule.dtype,
                       schedule.ranks,
                       address(step.to),
                       address(step.left),
                       address(step.right),
                       step.bytes,
                       id_,
                       number};
  buffers_.compute.start(buffers_.compute.context, &given);
}

void Execution::computed(std::uint32_t step, std::uint64_t stream, const Status& status) {
  Flight& flight = flights_[step];
  if (status.ok()) return transfers_.after(Device(buffers_.place.device), stream, &flight);
  Report report;
  report.status = status;
  flight_ended(flight, report);
}

void Execution::do_here(const Step& step) {
  const Schedule& schedule = plan_->schedule;
  void* to = pointer(address(step.to));
  if (step.kind == StepKind::Copy) {
    const void* from = pointer(address(step.left));
    std::memcpy(to, from, step.bytes);
  } else if (step.kind == StepKind::Reduce) {
    combine(schedule.reduce, schedule.dtype, to, pointer(address(step.left)),
            pointer(address(step.right)), step.bytes);
  } else {
    divide(schedule.dtype, to, step.bytes, schedule.ranks);
  }
}

void Execution::complete(std::uint32_t number) {
  const Step& step = plan_->schedule.steps[number];
  --left_;
  if (wait_for_all_ || plan_->is_awaited(step)) --awaited_;
  if (step.kind == StepKind::Recv) bytes_ += step.bytes;
  for (std::uint32_t i = plan_->first_successor[number]; i < plan_->first_successor[number + 1];
       ++i) {
    const std::uint32_t successor = plan_->successors[i];
    if (--waits_for_[successor] == 0) ready_.push_back(successor);
  }
}

void Execution::Flight::ended(TransferId, const Report& report) {
  execution->flight_ended(*this, report);
}

void Execution::flight_ended(Flight& flight, const Report& report) {
  const Step& step = plan_->schedule.steps[flight.step];
  flight.flying = false;
  --flying_;
  flying_caller_ -= touches_caller(step);
  if (report.status.ok()) {
    complete(flight.step);
  } else if (status_.ok()) {
    describe(step, report.status);
    return lost_rank_ >= 0 ? owner_.rank_lost(*this) : fail(status_);
  }
  advance();
}

std::string Execution::where() const {
  return name_ + " on rank " + std::to_string(ranks_.rank) + " of " + std::to_string(ranks_.size);
}

// The error that the caller gets: which rank, and why.
void Execution::describe(const Step& step, const Status& cause) {
  if (step.peer < 0) {
    status_ = {cause.code, where() + ": computing on the GPU failed: " + cause.text, ""};
    return;
  }
  if (cause.code == Code::Timeout) {
    std::set<std::int32_t> silent{step.peer};
    for (const Flight& flight : flights_)
      if (flight.flying && flight.id != 0) silent.insert(plan_->schedule.steps[flight.step].peer);
    std::string text = where() + ": Timed out after " + in_seconds(transfers_.now() - started_) +
                       ", waiting for rank";
    for (std::int32_t rank : silent)
      text += (rank == *silent.begin() ? " " : ", ") + std::to_string(rank);
    status_ = {cause.code, std::move(text), cause.rail};
    return;
  }
  const std::string who = "rank " + std::to_string(step.peer);
  if (cause.code == Code::PeerLost) {
    lost_rank_ = step.peer;
    status_ = {cause.code, where() + ": " + who + " is lost: " + cause.text, cause.rail};
    return;
  }
  const bool is_send = step.kind == StepKind::Send;
  status_ = {
      cause.code,
      where() + (is_send ? ": sending to " : ": receiving from ") + who + " failed: " + cause.text,
      cause.rail};
}

void Execution::settle_if_due() {
  const bool is_due = status_.ok() ? awaited_ == 0 : flying_caller_ == 0;
  if (!settled_ && is_due) {
    settled_ = true;
    owner_.settled(*this);
  }
  if (settled_ && flying_ == 0 && (left_ == 0 || !status_.ok())) owner_.drained(*this);
}

}  // namespace tent
