// Stage: c10d. torch's view of a running operation: see the header.
#include "c10d/work.h"

#include <utility>

namespace tent {

std::int64_t bound_of(std::chrono::milliseconds timeout) {
  const bool is_bounded = timeout.count() > 0 && timeout.count() < INT64_MAX / 1'000'000;
  return is_bounded ? timeout.count() * 1'000'000 : -1;
}

void throw_not_ended(::c10d::OpType type, std::chrono::milliseconds timeout) {
  C10D_THROW_ERROR(TimeoutError, "Operation timed out! ", ::c10d::opTypeToString(type),
                   " has not ended within ", timeout.count(), " ms; it goes on");
}

BackendWork::BackendWork(int rank, ::c10d::OpType type, const char* title,
                         const std::optional<std::vector<at::Tensor>>& inputs,
                         std::shared_ptr<Pending> pending, std::uint64_t sequence)
    : Work(rank, type, title, inputs), pending_(std::move(pending)), sequence_(sequence) {
  pending_->at_end = std::exchange(recordFunctionEndCallback_, nullptr);
}

BackendWork::~BackendWork() { pending_->finish_alone(); }

bool BackendWork::isCompleted() { return pending_->is_done(); }

bool BackendWork::isSuccess() const { return pending_->is_done() && pending_->error() == nullptr; }

std::exception_ptr BackendWork::exception() const {
  return pending_->is_done() ? pending_->error() : nullptr;
}

int BackendWork::sourceRank() const {
  const ::c10d::OpType type = opType_;
  TORCH_CHECK(type == ::c10d::OpType::RECV || type == ::c10d::OpType::RECVANYSOURCE,
              "sourceRank() may only be called on work objects that correspond to a recv or "
              "recv-from-any call.");
  return pending_->is_done() ? pending_->source() : -1;
}

std::vector<at::Tensor> BackendWork::result() {
  TORCH_CHECK(isCompleted(),
              "Work needs to be completed before calling result(). Should call wait() before "
              "result().");
  const Pending::Outputs& outputs = pending_->outputs;
  TORCH_CHECK(outputs.size() <= 1,
              "work result does not support list of lists, use .getFuture() and value()");
  return outputs.empty() ? std::vector<at::Tensor>() : outputs[0];
}

void BackendWork::synchronize() { wait(kNoTimeout); }

bool BackendWork::wait(std::chrono::milliseconds timeout) {
  if (!pending_->wait(bound_of(timeout))) throw_not_ended(opType_, timeout);
  if (const std::exception_ptr error = pending_->error()) std::rethrow_exception(error);
  pending_->order_current_streams();
  return true;
}

void BackendWork::abort() { pending_->cancel(); }

c10::intrusive_ptr<c10::ivalue::Future> BackendWork::getFuture() { return pending_->future(); }

}  // namespace tent
