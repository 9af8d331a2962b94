// Stage: c10d. The sum of sparse tensors, as embeddings have for gradients: every rank gathers all
// ranks' indices and values and adds them. It waits on the caller's thread, since the sizes of the
// second step come out of the first.
#include <ATen/ATen.h>

#include "c10d/backend.h"

namespace tent {

namespace {

constexpr std::int64_t kDimsMax = 13;

void wait_for(Pending& pending) {
  pending.wait(-1);
  if (const std::exception_ptr error = pending.error()) std::rethrow_exception(error);
}

// What the ranks must know of each other's tensor: its entries, dimensions and sizes.
at::Tensor header_of(const Complain& complain, const at::Tensor& tensor, std::int64_t entries) {
  if (tensor.dim() > kDimsMax)
    complain(c10::str("sums sparse tensors of up to ", kDimsMax, " dims"));
  std::vector<std::int64_t> header{entries, tensor.dim(), tensor.sparse_dim()};
  header.insert(header.end(), tensor.sizes().begin(), tensor.sizes().end());
  header.resize(3 + kDimsMax, 0);
  return at::tensor(header, at::kLong);
}

}  // namespace

TentBackend::WorkRef TentBackend::allreduce_sparse(Tensors& tensors,
                                                   const ::c10d::AllreduceOptions& opts) {
  const Complain complain = complain_as("allreduce");
  if (opts.reduceOp.op_ != ::c10d::ReduceOp::SUM)
    complain("unsupported reduction operation: sparse tensors can only be summed");
  at::Tensor& tensor = tensors[0];
  if (!tensor.is_cpu()) complain("only supports CPU tensors: convert it with cpu()");
  const at::NoGradGuard no_grad;
  const at::Tensor own = tensor.coalesce();
  const at::Tensor indices = own.indices().contiguous(), values = own.values().contiguous();

  const at::Tensor header = header_of(complain, own, indices.size(1));
  at::Tensor headers = at::empty({size_, header.numel()}, at::kLong);
  const auto known = std::make_shared<Pending>(link_);
  start_all_gather_base(*known, headers, header, opts.timeout);
  wait_for(*known);

  Tensors all_indices, all_values;
  for (int rank = 0; rank < size_; ++rank) {
    if (!headers[rank].slice(0, 1).equal(header.slice(0, 1)))
      complain(c10::str("sums sparse tensors of one shape, but that of rank ", rank,
                        " differs from ", own.sizes(), " with ", own.sparse_dim(),
                        " sparse dimensions here"));
    const std::int64_t count = headers[rank][0].item<std::int64_t>();
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
