// Stage: c10d. torch's view of a running operation. Made by TentBackend, used by any thread.
// What always holds: a Work that is dropped before its end leaves its tensors to the Pending.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "c10d/pending.h"

namespace tent {

// A timeout of Work::wait in nanoseconds; -1 where it has none, or one beyond the clock.
std::int64_t bound_of(std::chrono::milliseconds timeout);
[[noreturn]] void throw_not_ended(::c10d::OpType type, std::chrono::milliseconds timeout);

class BackendWork final : public ::c10d::Work {
 public:
  BackendWork(int rank, ::c10d::OpType type, const char* title,
              const std::optional<std::vector<at::Tensor>>& inputs,
              std::shared_ptr<Pending> pending, std::uint64_t sequence);
  ~BackendWork() override;

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  int sourceRank() const override;
  std::vector<at::Tensor> result() override;
  void synchronize() override;
  // 0: as long as the operation's own timeout allows. Throws the operation's error, TimeoutError
  // when `timeout` passed first; the operation goes on then.
  bool wait(std::chrono::milliseconds timeout) override;
  void abort() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  std::uint64_t getSequencenumber() const override { return sequence_; }

 private:
  const std::shared_ptr<Pending> pending_;
  const std::uint64_t sequence_;
};

}  // namespace tent
