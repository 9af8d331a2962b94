// Stage: c10d. The process-group backend "tent": turns torch's calls into those of the engine's
// function table. Made by torch_tent/process_group.py, called by torch on any thread, with the GIL
// or without. Checks and copies of odd strides happen on the caller's thread; nothing here waits
// but monitoredBarrier. What always holds: collectives of a group
// carry consecutive numbers, the same on all ranks; what can be refused is, before it has one.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "c10d/pending.h"
#include "c10d/torch_versions.h"

namespace tent {

// What process_group.py has agreed on with the other ranks.
struct Membership {
  int rank = 0, size = 1;
  std::uint64_t context = 0;         // the first of four: see collectives.h
  std::vector<std::uint32_t> peers;  // the engine's peer ids, by rank
  std::string name;
  std::chrono::milliseconds timeout = kBackendDefaultTimeout;
  std::vector<std::uint64_t> global_ranks;  // torch's record of them; empty for the default group
};

// What torch keeps of a group to make others like it; nothing that a user would set.
struct TentOptions final : ::c10d::Backend::Options {
  explicit TentOptions(const Membership& membership);
};

class TentBackend final : public ::c10d::Backend {
 public:
  using Tensors = std::vector<at::Tensor>;
  using TensorLists = std::vector<std::vector<at::Tensor>>;
  using WorkRef = c10::intrusive_ptr<::c10d::Work>;

  TentBackend(const TentApi* api, EngineOwner engine, Membership membership);
  ~TentBackend() override;

  const std::string getBackendName() const override { return "tent"; }
  // A copy: torch writes the name and timeout of a new group into it before it splits this one.
  c10::intrusive_ptr<Options> getBackendOptions() override;
  bool supportsCoalescing() const override { return true; }
  bool supportsSplitting() const override { return true; }

  WorkRef broadcast(Tensors& tensors, const ::c10d::BroadcastOptions& opts) override;
  WorkRef allreduce(Tensors& tensors, const ::c10d::AllreduceOptions& opts) override;
  WorkRef allreduce_sparse(Tensors& tensors, const ::c10d::AllreduceOptions& opts) override;
  WorkRef allreduce_coalesced(Tensors& tensors,
                              const ::c10d::AllreduceCoalescedOptions& opts) override;
  WorkRef reduce(Tensors& tensors, const ::c10d::ReduceOptions& opts) override;
  WorkRef allgather(TensorLists& outputs, Tensors& inputs,
                    const ::c10d::AllgatherOptions& opts) override;
  WorkRef _allgather_base(at::Tensor& output, at::Tensor& input,
                          const ::c10d::AllgatherOptions& opts) override;
  WorkRef allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                              const ::c10d::AllgatherOptions& opts) override;
  WorkRef allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const ::c10d::AllgatherOptions& opts) override;
  WorkRef gather(TensorLists& outputs, Tensors& inputs, const ::c10d::GatherOptions& opts) override;
  WorkRef scatter(Tensors& outputs, TensorLists& inputs,
                  const ::c10d::ScatterOptions& opts) override;
  WorkRef reduce_scatter(Tensors& outputs, TensorLists& inputs,
                         const ::c10d::ReduceScatterOptions& opts) override;
  WorkRef _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const ::c10d::ReduceScatterOptions& opts) override;
  WorkRef reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const ::c10d::ReduceScatterOptions& opts) override;
  WorkRef alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_rows,
                        std::vector<int64_t>& input_rows,
                        const ::c10d::AllToAllOptions& opts) override;
  WorkRef alltoall(Tensors& outputs, Tensors& inputs, const ::c10d::AllToAllOptions& opts) override;
  WorkRef barrier(const ::c10d::BarrierOptions& opts) override;
  void monitoredBarrier(const ::c10d::BarrierOptions& opts, bool wait_all_ranks) override;

  WorkRef send(Tensors& tensors, int to, int tag) override;
  WorkRef recv(Tensors& tensors, int from, int tag) override;
  WorkRef recvAnysource(Tensors& tensors, int tag) override;
  void startCoalescing() override;
  WorkRef endCoalescing() override;

  void setSequenceNumberForGroup() override {}  // they are the same by construction
  std::uint64_t getSequenceNumberForGroup() override { return sequence_; }
  c10::intrusive_ptr<Backend> split(const c10::intrusive_ptr<::c10d::Store>& store,
                                    const std::vector<int>& ranks,
                                    const c10::intrusive_ptr<Options>& opts) override;
  void setTimeout(std::chrono::milliseconds timeout) override;
  ::c10d::ErrorType getError() override;
  void abort() override;
  void shutdown() override;

  const Membership& membership() const { return membership_; }

 private:
  struct Call;       // one collective in the engine
  struct SparseSum;  // what the stages of one share

  std::shared_ptr<Pending> begin();
  WorkRef end(::c10d::OpType type, const char* title, const Tensors& inputs,
              std::shared_ptr<Pending> pending);
  void start(Pending& pending, const Call& call, std::chrono::milliseconds timeout);
  // With a number that was taken before.
  void start(Pending& pending, const Call& call, std::chrono::milliseconds timeout,
             std::uint64_t number);
  void start_all_reduce(Pending& pending, at::Tensor& tensor, const ::c10d::ReduceOp& op,
                        std::chrono::milliseconds timeout);
  void start_all_gather(Pending& pending, Tensors& outputs, const at::Tensor& input,
                        std::chrono::milliseconds timeout);
  void start_all_gather_base(Pending& pending, at::Tensor& output, const at::Tensor& input,
                             std::chrono::milliseconds timeout);
  void start_reduce_scatter_base(Pending& pending, at::Tensor& output, const at::Tensor& input,
                                 const ::c10d::ReduceOp& op, std::chrono::milliseconds timeout);
  WorkRef message(::c10d::OpType type, Tensors& tensors, int other, int tag);
  // Where buffers on this device lie, and that they are used; throws where they cannot be.
  TentPlace usable(Pending& pending, const at::Device& device,
                   const std::vector<TentBuffer>& buffers) const;
  // The call as the engine takes it, but for its number.
  TentCollectiveCall prepared(Pending& pending, const Call& call,
                              std::chrono::milliseconds timeout) const;
  std::int64_t nanoseconds(std::chrono::milliseconds timeout) const;

  const TentApi* const api_;
  const Membership membership_;
  const std::shared_ptr<GroupLink> link_;
  std::uint64_t group_ = 0;
  std::atomic<std::int64_t> timeout_ms_;
  std::atomic<std::uint64_t> sequence_{0};
  std::atomic<std::uint64_t> splits_{0};
  std::mutex mutex_;
  bool is_shut_ = false;                                                      // under mutex_
  std::unordered_map<std::thread::id, std::shared_ptr<Pending>> coalescing_;  // under mutex_
  std::atomic<int> coalescing_threads_{0};
};

}  // namespace tent
