// Stage: c10d. A Work of several stages: see the header.
#include "c10d/staged_work.h"

#include <ATen/core/List.h>

#include <utility>

#include "c10d/work.h"

namespace tent {

Stages::Stages(std::vector<Stage> stages, std::vector<at::Tensor> outputs)
    : stages_(std::move(stages)),
      outputs_(std::move(outputs)),
      future_(
          c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {
}

std::shared_ptr<Pending> Stages::running() {
  const std::lock_guard<std::mutex> guard(mutex_);
  return running_;
}

// No lock is held while a Pending is asked: its end may call back into advance().
void Stages::advance() {
  for (;;) {
    const std::shared_ptr<Pending> ended = running();
    if (ended && !ended->is_done()) return;
    if (!start_next(ended)) return;
    if (const std::shared_ptr<Pending> started = running()) {
      started->future()->addCallback(
          [self = shared_from_this()](c10::ivalue::Future&) { self->advance(); });
    }
  }
}

// False when all is done, or another thread was first.
bool Stages::start_next(const std::shared_ptr<Pending>& ended) {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (done_ || running_ != ended) return false;
    try {
      if (ended && ended->error()) std::rethrow_exception(ended->error());
      running_ = stages_[next_++]();
    } catch (...) {
      error_ = std::current_exception();
      running_ = nullptr;
    }
    if (running_) return true;
    done_ = true;
    stages_.clear();  // and with them all that they hold
  }
  complete();
  return false;
}

void Stages::complete() {
  if (at_end) at_end();
  if (error_ != nullptr)
    future_->setError(error_);
  else
    future_->markCompleted(c10::IValue(outputs_));
}

bool Stages::is_done() {
  advance();
  const std::lock_guard<std::mutex> guard(mutex_);
  return done_;
}

bool Stages::wait(std::int64_t timeout_ns) {
  const auto began = std::chrono::steady_clock::now();
  while (!is_done()) {
    std::int64_t left = -1;
    if (timeout_ns >= 0) {
      const std::chrono::nanoseconds passed = std::chrono::steady_clock::now() - began;
      left = std::max<std::int64_t>(0, timeout_ns - passed.count());
    }
    if (const auto part = running(); part && !part->wait(left)) return false;
  }
  return true;
}

std::exception_ptr Stages::error() {
  const std::lock_guard<std::mutex> guard(mutex_);
  return done_ ? error_ : nullptr;
}

c10::intrusive_ptr<c10::ivalue::Future> Stages::future() { return future_; }

void Stages::cancel() {
  if (const auto part = running()) part->cancel();
}

StagedWork::StagedWork(int rank, ::c10d::OpType type, const char* title,
                       std::shared_ptr<Stages> stages, std::uint64_t sequence)
    : Work(rank, type, title, stages->outputs()), stages_(std::move(stages)), sequence_(sequence) {
  stages_->at_end = std::exchange(recordFunctionEndCallback_, nullptr);
  stages_->advance();
}

bool StagedWork::isCompleted() { return stages_->is_done(); }

bool StagedWork::isSuccess() const { return stages_->is_done() && stages_->error() == nullptr; }

std::exception_ptr StagedWork::exception() const { return stages_->error(); }

bool StagedWork::wait(std::chrono::milliseconds timeout) {
  if (!stages_->wait(bound_of(timeout))) throw_not_ended(opType_, timeout);
  if (const std::exception_ptr error = stages_->error()) std::rethrow_exception(error);
  return true;
}

}  // namespace tent
