// Stage: c10d. The memory of one operation: contiguous memory that stands for the caller's tensors,
// which may have any strides, and the checks that they can be used at all. On a GPU it is filled in
// the caller's current stream. Filled on the caller's thread; finish() runs once, on the thread
// that notices the end, in that thread's current stream. What always holds: memory that was handed
// out lives as long as the Staging.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "c10d/torch_versions.h"
#include "engine/c_api.h"

namespace tent {

// Says what is wrong with an argument, by an exception.
using Complain = std::function<void(const std::string&)>;
Complain complain_as(const char* operation);

// Dense, on the CPU or a GPU.
void check_tensor(const Complain& complain, const at::Tensor& tensor);
void check_single(const Complain& complain, const std::vector<at::Tensor>& tensors);
void check_root(const Complain& complain, std::int64_t root, int size);
// Of the dtype of `like`, and on its device.
void check_same_type(const Complain& complain, const std::vector<at::Tensor>& tensors,
                     const at::Tensor& like);
// TentDtype; complains where it cannot be reduced.
std::int32_t reducible_dtype(const Complain& complain, const at::Tensor& tensor);
std::int32_t reduce_code(const Complain& complain, const ::c10d::ReduceOp& op);

TentBuffer buffer_of(const at::Tensor& contiguous);
// Equal consecutive parts.
std::vector<TentBuffer> equal_parts(const at::Tensor& contiguous, int count);
// Parts along the first dimension; empty `rows`: equal ones.
std::vector<TentBuffer> parts_by_rows(const at::Tensor& contiguous,
                                      const std::vector<std::int64_t>& rows, int count);

class Staging {
 public:
  // Each returns contiguous memory of the tensor's shape: the tensor's own where it has such.
  at::Tensor to_read(const at::Tensor& tensor);
  at::Tensor to_fill(const at::Tensor& tensor);    // its content is undefined
  at::Tensor to_update(const at::Tensor& tensor);  // begins with the tensor's elements
  // The operand of a reduction: PREMUL_SUM multiplies it first.
  at::Tensor operand(const at::Tensor& tensor, const ::c10d::ReduceOp& op);
  at::Tensor operand_in_place(const at::Tensor& tensor, const ::c10d::ReduceOp& op);

  // Memory of a GPU for partial results.
  at::Tensor scratch(const at::Device& device, std::uint64_t bytes);

  // Copies what was filled to where it belongs; true: a GPU does, and has not done it yet.
  bool finish();

 private:
  std::vector<at::Tensor> kept_;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;  // to, from
};

}  // namespace tent
