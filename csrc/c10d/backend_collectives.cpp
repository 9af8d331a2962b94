// Stage: c10d. torch's collectives as calls of the engine. The own part of a gathered or exchanged
// buffer is copied here, on the caller's thread, so that the engine has nothing large to copy.
#include <cstring>
#include <torch/csrc/distributed/c10d/Utils.hpp>
#include <utility>

#include "c10d/backend.h"
#include "c10d/call.h"
#include "c10d/lists.h"
#include "c10d/streams.h"

namespace tent {

namespace {

std::vector<TentBuffer> buffers_of(const std::vector<at::Tensor>& contiguous) {
  std::vector<TentBuffer> buffers;
  for (const at::Tensor& tensor : contiguous) buffers.push_back(buffer_of(tensor));
  return buffers;
}

// Copies elements in row-major order; the shapes may differ.
void copy_elements(const at::Tensor& to, const at::Tensor& from) {
  const at::NoGradGuard no_grad;
  to.view({-1}).copy_(from.detach().reshape({-1}));
}

// What a rank sends to itself: afterwards the engine finds it in place.
void copy_own(const at::Device& device, std::vector<TentBuffer>& inputs,
              const std::vector<TentBuffer>& outputs, int rank) {
  TentBuffer& from = inputs[std::size_t(rank)];
  const TentBuffer& to = outputs[std::size_t(rank)];
  if (from.bytes != to.bytes) return;  // the engine will say so
  if (from.bytes > 0 && device.is_cpu())
    std::memmove(reinterpret_cast<void*>(to.address), reinterpret_cast<void*>(from.address),
                 from.bytes);
  else if (from.bytes > 0)
    tensor_at(device, to.address, to.bytes, at::kByte)
        .copy_(tensor_at(device, from.address, from.bytes, at::kByte));
  from = to;
}

// The tensor that this rank fills, or gives, for itself.
void check_own_size(const Complain& complain, const std::vector<at::Tensor>& list, int rank,
                    const at::Tensor& own) {
  const at::Tensor& theirs = list[std::size_t(rank)];
  if (theirs.numel() != own.numel())
    complain(c10::str("invalid tensor size at index ", rank, " (expected ", own.sizes(), ", got ",
                      theirs.sizes(), ")"));
}

}  // namespace

TentBackend::WorkRef TentBackend::broadcast(Tensors& tensors,
                                            const ::c10d::BroadcastOptions& opts) {
  const Complain complain = complain_as("broadcast");
  check_root(complain, opts.rootRank, size_);
  check_single(complain, tensors);
  ::c10d::assertRootTensor(complain, opts.rootTensor, std::int64_t(tensors.size()));
  const auto pending = begin();
  Call call{TENT_BROADCAST, tensors[0].device()};
  call.root = std::int32_t(opts.rootRank);
  if (rank_ == opts.rootRank)
    call.inputs = {buffer_of(pending->staging.to_read(tensors[0]))};
  else
    call.outputs = {buffer_of(pending->staging.to_fill(tensors[0]))};
  start(*pending, call, opts.timeout);
  pending->outputs.push_back(tensors);
  return end(::c10d::OpType::BROADCAST, "tent:broadcast", tensors, pending);
}

void TentBackend::start_all_reduce(Pending& pending, at::Tensor& tensor, const ::c10d::ReduceOp& op,
                                   std::chrono::milliseconds timeout) {
  const Complain complain = complain_as("allreduce");
  Call call{TENT_ALL_REDUCE, tensor.device()};
  call.reduce = reduce_code(complain, op);
  call.dtype = reducible_dtype(complain, tensor);
  call.inputs = call.outputs = {buffer_of(pending.staging.operand_in_place(tensor, op))};
  start(pending, call, timeout);
}

TentBackend::WorkRef TentBackend::allreduce(Tensors& tensors,
                                            const ::c10d::AllreduceOptions& opts) {
  if (tensors.size() == 1 && tensors[0].is_sparse()) return allreduce_sparse(tensors, opts);
  check_single(complain_as("allreduce"), tensors);
  const auto pending = begin();
  start_all_reduce(*pending, tensors[0], opts.reduceOp, opts.timeout);
  pending->outputs.push_back(tensors);
  return end(::c10d::OpType::ALLREDUCE, "tent:all_reduce", tensors, pending);
}

TentBackend::WorkRef TentBackend::allreduce_coalesced(
    Tensors& tensors, const ::c10d::AllreduceCoalescedOptions& opts) {
  const Complain complain = complain_as("allreduce_coalesced");
  ::c10d::assertNonEmpty(complain, tensors);
  check_same_type(complain, tensors, tensors[0]);
  const auto pending = begin();
  for (at::Tensor& tensor : tensors)
    start_all_reduce(*pending, tensor, opts.reduceOp, opts.timeout);
  pending->outputs.push_back(tensors);
  return end(::c10d::OpType::ALLREDUCE_COALESCED, "tent:all_reduce", tensors, pending);
}

TentBackend::WorkRef TentBackend::reduce(Tensors& tensors, const ::c10d::ReduceOptions& opts) {
  const Complain complain = complain_as("reduce");
  check_root(complain, opts.rootRank, size_);
  check_single(complain, tensors);
  ::c10d::assertRootTensor(complain, opts.rootTensor, std::int64_t(tensors.size()));
  const auto pending = begin();
  Call call{TENT_REDUCE, tensors[0].device()};
  call.root = std::int32_t(opts.rootRank);
  call.reduce = reduce_code(complain, opts.reduceOp);
  call.dtype = reducible_dtype(complain, tensors[0]);
  if (rank_ == opts.rootRank) {
    call.inputs =
        call.outputs = {buffer_of(pending->staging.operand_in_place(tensors[0], opts.reduceOp))};
  } else {
    call.inputs = {buffer_of(pending->staging.operand(tensors[0], opts.reduceOp))};
  }
  start(*pending, call, opts.timeout);
  pending->outputs.push_back(tensors);
  return end(::c10d::OpType::REDUCE, "tent:reduce", tensors, pending);
}

void TentBackend::start_all_gather(Pending& pending, Tensors& outputs, const at::Tensor& input,
                                   std::chrono::milliseconds timeout) {
  const Complain complain = complain_as("allgather");
  check_tensor(complain, input);
  check_length(complain, "output", outputs.size(), size_);
  check_same_type(complain, outputs, input);
  check_own_size(complain, outputs, rank_, input);
  Tensors filled;
  for (const at::Tensor& output : outputs) filled.push_back(pending.staging.to_fill(output));
  const at::Tensor& own = filled[std::size_t(rank_)];
  copy_elements(own, input);
  start(pending, {TENT_ALL_GATHER, own.device(), {buffer_of(own)}, buffers_of(filled)}, timeout);
}

TentBackend::WorkRef TentBackend::allgather(TensorLists& outputs, Tensors& inputs,
                                            const ::c10d::AllgatherOptions& opts) {
  const Complain complain = complain_as("allgather");
  check_some(complain, inputs);
  check_as_many(complain, outputs.size(), inputs.size());
  check_single(complain, inputs);
  const auto pending = begin();
  start_all_gather(*pending, outputs[0], inputs[0], opts.timeout);
  pending->outputs.push_back(outputs[0]);
  return end(::c10d::OpType::ALLGATHER, "tent:all_gather", inputs, pending);
}

TentBackend::WorkRef TentBackend::allgather_coalesced(TensorLists& outputs, Tensors& inputs,
                                                      const ::c10d::AllgatherOptions& opts) {
  const Complain complain = complain_as("allgather_coalesced");
  check_some(complain, inputs);
  check_lists(complain, outputs.size(), size_);
  for (const Tensors& row : outputs) check_as_many(complain, row.size(), inputs.size());
  const auto pending = begin();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Tensors column;  // outputs[rank][i]
    for (Tensors& row : outputs) column.push_back(row[i]);
    start_all_gather(*pending, column, inputs[i], opts.timeout);
  }
  pending->outputs = outputs;
  return end(::c10d::OpType::ALLGATHER_COALESCED, "tent:all_gather", inputs, pending);
}

void TentBackend::start_all_gather_base(Pending& pending, at::Tensor& output,
                                        const at::Tensor& input,
                                        std::chrono::milliseconds timeout) {
  const Complain complain = complain_as("_allgather_base");
  check_tensor(complain, input);
  check_same_type(complain, {output}, input);
  if (output.numel() != input.numel() * size_)
    complain(c10::str("output tensor size must be equal to world_size times input tensor size: ",
                      output.numel(), " is not ", size_, " times ", input.numel()));
  const at::Tensor filled = pending.staging.to_fill(output);
  copy_elements(filled.view({size_, -1})[rank_], input);
  const std::vector<TentBuffer> parts = equal_parts(filled, size_);
  start(pending, {TENT_ALL_GATHER, filled.device(), {parts[std::size_t(rank_)]}, parts}, timeout);
}

TentBackend::WorkRef TentBackend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                                  const ::c10d::AllgatherOptions& opts) {
  const auto pending = begin();
  start_all_gather_base(*pending, output, input, opts.timeout);
  pending->outputs.push_back({output});
  return end(::c10d::OpType::_ALLGATHER_BASE, "tent:_all_gather_base", {input}, pending);
}

TentBackend::WorkRef TentBackend::allgather_into_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const ::c10d::AllgatherOptions& opts) {
  const Complain complain = complain_as("allgather_into_tensor_coalesced");
  check_as_many(complain, outputs.size(), inputs.size());
  const auto pending = begin();
  for (std::size_t i = 0; i < inputs.size(); ++i)
    start_all_gather_base(*pending, outputs[i], inputs[i], opts.timeout);
  pending->outputs.push_back(outputs);
  return end(::c10d::OpType::COALESCED, "tent:all_gather", inputs, pending);
}

TentBackend::WorkRef TentBackend::gather(TensorLists& outputs, Tensors& inputs,
                                         const ::c10d::GatherOptions& opts) {
  const Complain complain = complain_as("gather");
  check_root(complain, opts.rootRank, size_);
  ::c10d::assertSingleElementInput(complain, inputs);
  check_single(complain, inputs);
  const auto pending = begin();
  Call call{TENT_GATHER, inputs[0].device()};
  call.root = std::int32_t(opts.rootRank);
  if (rank_ == opts.rootRank) {
    check_one_list(complain, "output", outputs, size_);
    check_same_type(complain, outputs[0], inputs[0]);
    check_own_size(complain, outputs[0], rank_, inputs[0]);
    Tensors filled;
    for (const at::Tensor& output : outputs[0]) filled.push_back(pending->staging.to_fill(output));
    copy_elements(filled[std::size_t(rank_)], inputs[0]);
    call.inputs = {buffer_of(filled[std::size_t(rank_)])};
    call.outputs = buffers_of(filled);
    pending->outputs.push_back(outputs[0]);
  } else {
    check_none(complain, "output", outputs);
    call.inputs = {buffer_of(pending->staging.to_read(inputs[0]))};
  }
  start(*pending, call, opts.timeout);
  return end(::c10d::OpType::GATHER, "tent:gather", inputs, pending);
}

TentBackend::WorkRef TentBackend::scatter(Tensors& outputs, TensorLists& inputs,
                                          const ::c10d::ScatterOptions& opts) {
  const Complain complain = complain_as("scatter");
  check_root(complain, opts.rootRank, size_);
  ::c10d::assertSingleElementOutput(complain, outputs);
  check_single(complain, outputs);
  const auto pending = begin();
  const at::Tensor filled = pending->staging.to_fill(outputs[0]);
  Call call{TENT_SCATTER, filled.device(), {}, {buffer_of(filled)}};
  call.root = std::int32_t(opts.rootRank);
  if (rank_ == opts.rootRank) {
    check_one_list(complain, "input", inputs, size_);
    check_same_type(complain, inputs[0], outputs[0]);
    check_own_size(complain, inputs[0], rank_, outputs[0]);
    for (const at::Tensor& input : inputs[0])
      call.inputs.push_back(buffer_of(pending->staging.to_read(input)));
    copy_elements(filled, inputs[0][std::size_t(rank_)]);
    call.inputs[std::size_t(rank_)] = call.outputs[0];
  } else {
    check_none(complain, "input", inputs);
  }
  start(*pending, call, opts.timeout);
  pending->outputs.push_back(outputs);
  return end(::c10d::OpType::SCATTER, "tent:scatter", inputs.empty() ? Tensors() : inputs[0],
             pending);
}

TentBackend::WorkRef TentBackend::reduce_scatter(Tensors& outputs, TensorLists& inputs,
                                                 const ::c10d::ReduceScatterOptions& opts) {
  const Complain complain = complain_as("reduce_scatter");
  ::c10d::assertSingleElementOutput(complain, outputs);
  check_as_many(complain, outputs.size(), inputs.size());
  check_single(complain, outputs);
  check_length(complain, "input", inputs[0].size(), size_);
  check_same_type(complain, inputs[0], outputs[0]);
  check_own_size(complain, inputs[0], rank_, outputs[0]);
  const auto pending = begin();
  Call call{TENT_REDUCE_SCATTER, outputs[0].device()};
  call.reduce = reduce_code(complain, opts.reduceOp);
  call.dtype = reducible_dtype(complain, outputs[0]);
  for (const at::Tensor& input : inputs[0])
    call.inputs.push_back(buffer_of(pending->staging.operand(input, opts.reduceOp)));
  call.outputs = {buffer_of(pending->staging.to_fill(outputs[0]))};
  start(*pending, call, opts.timeout);
  pending->outputs.push_back(outputs);
  return end(::c10d::OpType::REDUCE_SCATTER, "tent:reduce_scatter", inputs[0], pending);
}

void TentBackend::start_reduce_scatter_base(Pending& pending, at::Tensor& output,
                                            const at::Tensor& input, const ::c10d::ReduceOp& op,
                                            std::chrono::milliseconds timeout) {
  const Complain complain = complain_as("_reduce_scatter_base");
  check_tensor(complain, output);
  check_same_type(complain, {input}, output);
  if (input.numel() != output.numel() * size_)
    complain(c10::str("input tensor must be the same size as output size times world size: ",
                      input.numel(), " is not ", size_, " times ", output.numel()));
  Call call{TENT_REDUCE_SCATTER, output.device()};
  call.reduce = reduce_code(complain, op);
  call.dtype = reducible_dtype(complain, output);
  call.inputs = equal_parts(pending.staging.operand(input, op), size_);
  call.outputs = {buffer_of(pending.staging.to_fill(output))};
  start(pending, call, timeout);
}

TentBackend::WorkRef TentBackend::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                       const ::c10d::ReduceScatterOptions& opts) {
  const auto pending = begin();
  start_reduce_scatter_base(*pending, output, input, opts.reduceOp, opts.timeout);
  pending->outputs.push_back({output});
  return end(::c10d::OpType::_REDUCE_SCATTER_BASE, "tent:_reduce_scatter_base", {input}, pending);
}

TentBackend::WorkRef TentBackend::reduce_scatter_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const ::c10d::ReduceScatterOptions& opts) {
  const Complain complain = complain_as("reduce_scatter_tensor_coalesced");
  check_as_many(complain, outputs.size(), inputs.size());
  const auto pending = begin();
  for (std::size_t i = 0; i < inputs.size(); ++i)
    start_reduce_scatter_base(*pending, outputs[i], inputs[i], opts.reduceOp, opts.timeout);
  pending->outputs.push_back(outputs);
  return end(::c10d::OpType::COALESCED, "tent:reduce_scatter", inputs, pending);
}

TentBackend::WorkRef TentBackend::alltoall_base(at::Tensor& output, at::Tensor& input,
                                                std::vector<int64_t>& output_rows,
                                                std::vector<int64_t>& input_rows,
                                                const ::c10d::AllToAllOptions& opts) {
  const Complain complain = complain_as("alltoall_base");
  check_tensor(complain, output);
  check_same_type(complain, {input}, output);
  ::c10d::checkSplitSizes(input_rows, input, size_);
  ::c10d::checkSplitSizes(output_rows, output, size_);
  const auto pending = begin();
  Call call{TENT_ALL_TO_ALL, output.device()};
  call.inputs = parts_by_rows(pending->staging.to_read(input), input_rows, size_);
  const at::Tensor filled = pending->staging.to_fill(output);
  call.outputs = parts_by_rows(filled, output_rows, size_);
  copy_own(call.device, call.inputs, call.outputs, rank_);
  start(*pending, call, opts.timeout);
  pending->outputs.push_back({output});
  return end(::c10d::OpType::ALLTOALL_BASE, "tent:all_to_all", {input}, pending);
}

TentBackend::WorkRef TentBackend::alltoall(Tensors& outputs, Tensors& inputs,
                                           const ::c10d::AllToAllOptions& opts) {
  const Complain complain = complain_as("alltoall");
  check_length(complain, "input", inputs.size(), size_);
  check_length(complain, "output", outputs.size(), size_);
  check_same_type(complain, outputs, inputs[0]);
  check_same_type(complain, inputs, inputs[0]);
  check_own_size(complain, outputs, rank_, inputs[std::size_t(rank_)]);
  const auto pending = begin();
  Call call{TENT_ALL_TO_ALL, inputs[0].device()};
  for (const at::Tensor& input : inputs)
    call.inputs.push_back(buffer_of(pending->staging.to_read(input)));
  for (const at::Tensor& output : outputs)
    call.outputs.push_back(buffer_of(pending->staging.to_fill(output)));
  copy_own(call.device, call.inputs, call.outputs, rank_);
  start(*pending, call, opts.timeout);
  pending->outputs.push_back(outputs);
  return end(::c10d::OpType::ALLTOALL, "tent:all_to_all", inputs, pending);
}

TentBackend::WorkRef TentBackend::barrier(const ::c10d::BarrierOptions& opts) {
  const auto pending = begin();
  start(*pending, {TENT_BARRIER, at::kCPU}, opts.timeout);
  return end(::c10d::OpType::BARRIER, "tent:barrier", {}, pending);
}

}  // namespace tent
