// Stage: c10d. A Work of several stages, where what a stage does comes out of the one before, as
// the sizes of sparse tensors do. Made by backend_sparse.cpp. What always holds: the next stage
// starts on whichever thread notices the end of the one before, the notifier at the latest, so that
// other ranks never wait for this one's caller; stages run one after the other, and none after an
// error.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "c10d/pending.h"

namespace tent {

class Stages : public std::enable_shared_from_this<Stages> {
 public:
  // What it has started; null from the last one, after which all is done.
  using Stage = std::function<std::shared_ptr<Pending>()>;
  Stages(std::vector<Stage> stages, std::vector<at::Tensor> outputs);

  void advance();  // starts what can be started; also called first
  bool wait(std::int64_t timeout_ns);
  bool is_done();
  std::exception_ptr error();
  const std::vector<at::Tensor>& outputs() const { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> future();
  void cancel();
  std::function<void()> at_end;  // for the profiler; set before the first advance()

 private:
  std::shared_ptr<Pending> running();
  bool start_next(const std::shared_ptr<Pending>& ended);
  void complete();

  std::mutex mutex_;
  std::vector<Stage> stages_;
  const std::vector<at::Tensor> outputs_;
  std::size_t next_ = 0;              // under mutex_, as all that follows
  std::shared_ptr<Pending> running_;  // null: before the first and after the last
  bool done_ = false;
  std::exception_ptr error_;
  const c10::intrusive_ptr<c10::ivalue::Future> future_;
};

class StagedWork final : public ::c10d::Work {
 public:
  StagedWork(int rank, ::c10d::OpType type, const char* title, std::shared_ptr<Stages> stages,
             std::uint64_t sequence);
  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  std::vector<at::Tensor> result() override { return stages_->outputs(); }
  void synchronize() override { wait(kNoTimeout); }
  bool wait(std::chrono::milliseconds timeout) override;
  void abort() override { stages_->cancel(); }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return stages_->future(); }
  std::uint64_t getSequencenumber() const override { return sequence_; }

 private:
  const std::shared_ptr<Stages> stages_;
  const std::uint64_t sequence_;
};

}  // namespace tent
