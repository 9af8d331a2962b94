// Stage: engine. See operations.h.
#include "engine/operations.h"

namespace tent {

OperationRef Operations::open(const Request& request) {
  auto operation = std::make_shared<Operation>(request.id);
  operation->urgent = request.priority == Priority::Foreground;
  running_.emplace(request.id,
                   Running{request.op, request.context, request.peer, operation, nullptr});
  return operation;
}

void Operations::follow(const Request& request, Continuation* then) {
  running_.emplace(request.id, Running{request.op, request.context, request.peer, nullptr, then});
}

std::vector<TransferId> Operations::ids() const {
  std::vector<TransferId> ids;
  ids.reserve(running_.size());
  for (const auto& [id, running] : running_) ids.push_back(id);
  return ids;
}

std::vector<TransferId> Operations::ids_in(std::uint64_t context, PeerId peer) const {
  std::vector<TransferId> ids;
  for (const auto& [id, running] : running_) {
    const bool message = running.kind == Request::Op::Send || running.kind == Request::Op::Recv;
    const bool is_with = peer == kAnyPeer || running.peer == peer;
    if (message && is_with && running.context == context) ids.push_back(id);
  }
  return ids;
}

void Operations::finish(Report report) {
  const auto found = running_.find(report.id);
  if (found == running_.end()) return;
  const Running running = std::move(found->second);
  running_.erase(found);
  if (report.status.ok()) {
    latencies_[std::size_t(running.kind)].add(report.ended - report.started);
  }
  if (running.then) {
    running.then->ended(report.id, report);
  } else {
    finish(running.operation, std::move(report));
  }
}

void Operations::finish(const OperationRef& operation, Report report) {
  operation->report = std::move(report);
  if (operation->make_ready()) aftermath_.sleepers.push_back(operation);
  watch(operation, operation->watch);
  auto& calls = operation->end_calls;
  aftermath_.end_calls.insert(aftermath_.end_calls.end(), calls.begin(), calls.end());
  calls.clear();
}

void Operations::watch(const OperationRef& operation, Watch watch) {
  if (!operation->ready()) {
    operation->watch = watch;
  } else if (watch == Watch::Soon) {
    aftermath_.watched.push_back(operation->id);
  } else if (watch == Watch::Late) {
    late_.push_back(operation);
  }
}

void Operations::tell_late() {
  for (const OperationRef& operation : late_) {
    if (!operation->waited_for.load(std::memory_order_relaxed)) {
      aftermath_.watched.push_back(operation->id);
    }
  }
  late_.clear();
}

void Operations::call_at_end(const OperationRef& operation, EndCall fn, void* context) {
  auto& calls = operation->ready() ? aftermath_.end_calls : operation->end_calls;
  calls.emplace_back(fn, context);
}

}  // namespace tent
