// Stage: c10d. The sum of sparse tensors, as embeddings have for gradients: every rank gathers all
// ranks' indices and values and adds them, in stages: the sizes of the second come out of the
// first.
#include <ATen/ATen.h>

#include "c10d/backend.h"
#include "c10d/call.h"
#include "c10d/staged_work.h"

namespace tent {

namespace {

constexpr std::int64_t kDimsMax = 13;

constexpr std::uint64_t kNumbers = 3;  // collectives of one sum

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

struct TentBackend::SparseSum {
  c10::intrusive_ptr<TentBackend> backend;
  std::chrono::milliseconds timeout;
  std::uint64_t number;  // its first collective's
  at::Tensor tensor, header, indices, values;
  Tensors headers, all_indices, all_values;

  std::shared_ptr<Pending> gather_headers();
  std::shared_ptr<Pending> gather_contents();
  std::shared_ptr<Pending> add();

 private:
  void gather(Pending& pending, const Tensors& all, const at::Tensor& own);
};

// All are contiguous and of the sizes that their ranks have said.
void TentBackend::SparseSum::gather(Pending& pending, const Tensors& all, const at::Tensor& own) {
  const auto rank = std::size_t(backend->rank_);
  Call call{TENT_ALL_GATHER, at::kCPU};
  for (const at::Tensor& each : all) call.outputs.push_back(buffer_of(each));
  all[rank].copy_(own);
  call.inputs = {call.outputs[rank]};
  backend->start(pending, call, timeout, number++);
}

std::shared_ptr<Pending> TentBackend::SparseSum::gather_headers() {
  const auto pending = std::make_shared<Pending>(backend->link_);
  for (int rank = 0; rank < backend->size_; ++rank) headers.push_back(at::empty_like(header));
  gather(*pending, headers, header);
  return pending;
}

std::shared_ptr<Pending> TentBackend::SparseSum::gather_contents() {
  const Complain complain = complain_as("allreduce");
  for (int rank = 0; rank < backend->size_; ++rank) {
    const at::Tensor& theirs = headers[std::size_t(rank)];
    if (!theirs.slice(0, 1).equal(header.slice(0, 1)))
      complain(c10::str("sums sparse tensors of one shape, but that of rank ", rank,
                        " differs from ", tensor.sizes(), " with ", tensor.sparse_dim(),
                        " sparse dimensions here"));
    const std::int64_t count = theirs[0].item<std::int64_t>();
    std::vector<std::int64_t> shape = values.sizes().vec();
    shape[0] = count;
    all_indices.push_back(at::empty({indices.size(0), count}, indices.options()));
    all_values.push_back(at::empty(shape, values.options()));
  }
  const auto pending = std::make_shared<Pending>(backend->link_);
  gather(*pending, all_indices, indices);
  gather(*pending, all_values, values);
  return pending;
}

std::shared_ptr<Pending> TentBackend::SparseSum::add() {
  const at::Tensor total = at::sparse_coo_tensor(at::cat(all_indices, 1), at::cat(all_values, 0),
                                                 tensor.sizes(), tensor.options());
  tensor.copy_(total.coalesce());
  return nullptr;
}

TentBackend::WorkRef TentBackend::allreduce_sparse(Tensors& tensors,
                                                   const ::c10d::AllreduceOptions& opts) {
  const Complain complain = complain_as("allreduce");
  if (opts.reduceOp.op_ != ::c10d::ReduceOp::SUM)
    complain("unsupported reduction operation: sparse tensors can only be summed");
  if (!tensors[0].is_cpu()) complain("only supports CPU tensors: convert it with cpu()");
  const at::NoGradGuard no_grad;
  const at::Tensor own = tensors[0].coalesce();
  const auto sum = std::make_shared<SparseSum>();
  sum->tensor = tensors[0];
  sum->indices = own.indices().contiguous();
  sum->values = own.values().contiguous();
  sum->header = header_of(complain, own, sum->indices.size(1));
  sum->timeout = opts.timeout;
  sum->backend = c10::intrusive_ptr<TentBackend>::unsafe_reclaim_from_nonowning(this);
  // All are taken here: what the caller starts next has the same number on all ranks.
  sum->number = sequence_.fetch_add(kNumbers);
  const auto stage = [sum](std::shared_ptr<Pending> (SparseSum::*start)()) {
    return [sum, start] {
      const at::NoGradGuard no_grad;
      return (*sum.*start)();
    };
  };
  const auto stages = std::make_shared<Stages>(
      std::vector<Stages::Stage>{stage(&SparseSum::gather_headers),
                                 stage(&SparseSum::gather_contents), stage(&SparseSum::add)},
      tensors);
  return c10::make_intrusive<StagedWork>(rank_, ::c10d::OpType::_ALLREDUCE_SPARSE,
                                         "tent:all_reduce", stages, sequence_.load());
}

}  // namespace tent
