// Stage: c10d. The sum of sparse tensors, as embeddings have for gradients: every rank gathers all
// ranks' indices and values and adds them. It waits on the caller's thread, since the sizes of the
// second step come out of the first.
#include <ATen/ATen.h>

#include "c10d/backend.h"

namespace tent {

namespace {

void wait_for(Pending& pending) {
  pending.wait(-1);
  if (const std::exception_ptr error = pending.error()) std::rethrow_exception(error);
}

}  // namespace

TentBackend::WorkRef TentBackend::allreduce_sparse(Tensors& tensors,
                                                   const ::c10d::AllreduceOptions& opts) {
  const Complain complain = complain_as("allreduce");
  TORCH_CHECK(opts.reduceOp.op_ == ::c10d::ReduceOp::SUM,
              "unsupported reduction operation: sparse tensors can only be summed");
  at::Tensor& tensor = tensors[0];
  if (!tensor.is_cpu()) complain("only supports CPU tensors: convert it with cpu()");
  const at::NoGradGuard no_grad;
  const at::Tensor own = tensor.coalesce();
  const at::Tensor indices = own.indices().contiguous(), values = own.values().contiguous();

  at::Tensor counts = at::empty({size_}, at::kLong);
  const auto sizes = std::make_shared<Pending>(link_);
  start_all_gather_base(*sizes, counts, at::full({1}, indices.size(1), at::kLong), opts.timeout);
  wait_for(*sizes);

  Tensors all_indices, all_values;
  for (int rank = 0; rank < size_; ++rank) {
    const std::int64_t count = counts[rank].item<std::int64_t>();
    std::vector<std::int64_t> shape = values.sizes().vec();
    shape[0] = count;
    all_indices.push_back(at::empty({indices.size(0), count}, indices.options()));
    all_values.push_back(at::empty(shape, values.options()));
  }
  const auto contents = std::make_shared<Pending>(link_);
  start_all_gather(*contents, all_indices, indices, opts.timeout);
  start_all_gather(*contents, all_values, values, opts.timeout);
  wait_for(*contents);

  const at::Tensor total = at::sparse_coo_tensor(at::cat(all_indices, 1), at::cat(all_values, 0),
                                                 tensor.sizes(), tensor.options());
  tensor.copy_(total.coalesce());
  const auto done = std::make_shared<Pending>(link_);
  done->outputs.push_back(tensors);
  return end(::c10d::OpType::_ALLREDUCE_SPARSE, "tent:all_reduce", tensors, done);
}

}  // namespace tent
