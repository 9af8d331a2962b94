// Stage: c10d. Checks of tensors, and their contiguous memory: see the header.
#include "c10d/staging.h"

#include <ATen/ATen.h>

#include <torch/csrc/distributed/c10d/Utils.hpp>

#include "c10d/streams.h"

namespace tent {

namespace {

bool is_plain(const at::Tensor& tensor) {
  return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg();
}

void multiply(at::Tensor& tensor, const ::c10d::ReduceOp& op) {
  const auto* factor = dynamic_cast<const PremulSupplement*>(op.supplement_.get());
  TORCH_CHECK(factor != nullptr, "PREMUL_SUM has no factor");
  const at::NoGradGuard no_grad;
  if (factor->tensor_factor.defined())
    tensor.mul_(factor->tensor_factor);
  else
    tensor.mul_(factor->double_factor);
}

}  // namespace

Complain complain_as(const char* operation) {
  return [operation](const std::string& what) {
    TORCH_CHECK(false, "TentBackend::", operation, ": ", what);
  };
}

void check_tensor(const Complain& complain, const at::Tensor& tensor) {
  if (!tensor.defined()) complain("got an undefined tensor");
  if (tensor.layout() != at::kStrided)
    complain(c10::str("only supports dense tensors, not ", tensor.layout(),
                      ": convert it with to_dense()"));
  if (!tensor.is_cpu() && !tensor.is_cuda())
    complain(c10::str("only supports CPU and CUDA tensors, not one on ", tensor.device(),
                      ": convert it with cpu()"));
}

void check_single(const Complain& complain, const std::vector<at::Tensor>& tensors) {
  ::c10d::assertNonEmpty(complain, tensors);
  ::c10d::assertSingleElement(complain, tensors);
  check_tensor(complain, tensors[0]);
}

void check_root(const Complain& complain, std::int64_t root, int size) {
  ::c10d::assertRootRank(complain, root, size);
}

void check_same_type(const Complain& complain, const std::vector<at::Tensor>& tensors,
                     const at::Tensor& like) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    check_tensor(complain, tensors[i]);
    if (tensors[i].scalar_type() != like.scalar_type())
      complain(c10::str("invalid tensor type at index ", i, " (expected ", like.scalar_type(),
                        ", got ", tensors[i].scalar_type(), ")"));
    if (tensors[i].device() != like.device())
      complain(c10::str("all tensors must be on one device, but that at index ", i, " is on ",
                        tensors[i].device(), " and another one on ", like.device()));
  }
}

std::int32_t reducible_dtype(const Complain& complain, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kByte:
      return TENT_U8;
    case at::kChar:
      return TENT_I8;
    case at::kShort:
      return TENT_I16;
    case at::kInt:
      return TENT_I32;
    case at::kLong:
      return TENT_I64;
    case at::kHalf:
      return TENT_F16;
    case at::kBFloat16:
      return TENT_BF16;
    case at::kFloat:
      return TENT_F32;
    case at::kDouble:
      return TENT_F64;
    case at::kComplexFloat:
      return TENT_C64;
    case at::kComplexDouble:
      return TENT_C128;
    case at::kBool:
      return TENT_BOOL;
    case at::kUInt16:
      return TENT_U16;
    case at::kUInt32:
      return TENT_U32;
    case at::kUInt64:
      return TENT_U64;
    default:
      break;
  }
  complain(c10::str("Invalid scalar type: ", tensor.scalar_type(), " cannot be reduced"));
  return -1;
}

std::int32_t reduce_code(const Complain& complain, const ::c10d::ReduceOp& op) {
  using Op = ::c10d::ReduceOp::RedOpType;
  switch (op.op_) {
    case Op::SUM:
    case Op::PREMUL_SUM:
      return TENT_SUM;
    case Op::AVG:
      return TENT_AVG;
    case Op::PRODUCT:
      return TENT_PRODUCT;
    case Op::MIN:
      return TENT_MIN;
    case Op::MAX:
      return TENT_MAX;
    case Op::BAND:
      return TENT_BAND;
    case Op::BOR:
      return TENT_BOR;
    case Op::BXOR:
      return TENT_BXOR;
    default:
      break;
  }
  complain("unknown ReduceOp");
  return -1;
}

TentBuffer buffer_of(const at::Tensor& contiguous) {
  return {reinterpret_cast<std::uint64_t>(contiguous.data_ptr()), contiguous.nbytes()};
}

std::vector<TentBuffer> equal_parts(const at::Tensor& contiguous, int count) {
  const TentBuffer whole = buffer_of(contiguous);
  const std::uint64_t each = whole.bytes / std::uint64_t(count);
  std::vector<TentBuffer> parts;
  for (int i = 0; i < count; ++i) parts.push_back({whole.address + std::uint64_t(i) * each, each});
  return parts;
}

std::vector<TentBuffer> parts_by_rows(const at::Tensor& contiguous,
                                      const std::vector<std::int64_t>& rows, int count) {
  if (rows.empty()) return equal_parts(contiguous, count);
  TentBuffer rest = buffer_of(contiguous);
  const std::int64_t all = contiguous.size(0);
  const std::uint64_t row_bytes = all == 0 ? 0 : rest.bytes / std::uint64_t(all);
  std::vector<TentBuffer> parts;
  for (std::int64_t n : rows) {
    const std::uint64_t bytes = std::uint64_t(n) * row_bytes;
    parts.push_back({rest.address, bytes});
    rest.address += bytes;
  }
  return parts;
}

at::Tensor Staging::to_read(const at::Tensor& tensor) {
  // A conjugated view is contiguous to contiguous(), but its memory is not.
  kept_.push_back(is_plain(tensor) ? tensor
                                   : tensor.detach().resolve_conj().resolve_neg().contiguous());
  return kept_.back();
}

at::Tensor Staging::to_fill(const at::Tensor& tensor) {
  kept_.push_back(is_plain(tensor) ? tensor : at::empty(tensor.sizes(), tensor.options()));
  const at::Tensor memory = kept_.back();
  if (!memory.is_same(tensor)) copies_.emplace_back(tensor.detach(), memory);
  return memory;
}

at::Tensor Staging::to_update(const at::Tensor& tensor) {
  at::Tensor memory = to_fill(tensor);
  if (!memory.is_same(tensor)) memory.copy_(tensor.detach());
  return memory;
}

at::Tensor Staging::operand(const at::Tensor& tensor, const ::c10d::ReduceOp& op) {
  if (op.op_ != ::c10d::ReduceOp::PREMUL_SUM) return to_read(tensor);
  at::Tensor scaled = tensor.detach().clone(at::MemoryFormat::Contiguous);
  multiply(scaled, op);
  return to_read(scaled);
}

at::Tensor Staging::operand_in_place(const at::Tensor& tensor, const ::c10d::ReduceOp& op) {
  at::Tensor memory = to_update(tensor);
  if (op.op_ == ::c10d::ReduceOp::PREMUL_SUM) {
    at::Tensor values = memory.detach();
    multiply(values, op);
  }
  return memory;
}

at::Tensor Staging::scratch(const at::Device& device, std::uint64_t bytes) {
  kept_.push_back(at::empty({std::int64_t(bytes)}, at::TensorOptions(at::kByte).device(device)));
  return kept_.back();
}

bool Staging::finish() {
  const at::NoGradGuard no_grad;
  bool on_gpu = false;
  for (auto& [to, from] : copies_) {
    to.copy_(from, /*non_blocking=*/true);
    if (to.is_cpu()) continue;
    on_gpu = true;
    for (const at::Tensor& each : {to, from}) keep_for(current_stream(to.device()), each);
  }
  copies_.clear();
  return on_gpu;
}

}  // namespace tent
