// Stage: c10d. Reductions on GPUs: see the header.
#include "c10d/arithmetic.h"

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <unistd.h>

#include <iterator>

namespace tent {

namespace {

// As TentDtype counts. Sums, products and bits of unsigned numbers are those of signed ones.
constexpr at::ScalarType kDtypes[] = {
    at::kByte,          at::kChar,     at::kShort, at::kInt,    at::kLong,
    at::kHalf,          at::kBFloat16, at::kFloat, at::kDouble, at::kComplexFloat,
    at::kComplexDouble, at::kBool,     at::kShort, at::kInt,    at::kLong,
};
static_assert(std::size(kDtypes) == TENT_U64 + 1);

bool is_wide_unsigned(std::int32_t dtype) { return dtype >= TENT_U16 && dtype <= TENT_U64; }

// For booleans, sum and maximum are "or", product and minimum "and".
void combine(const TentStep& step, at::Tensor to, const at::Tensor& left, const at::Tensor& right) {
  const bool is_bool = step.dtype == TENT_BOOL;
  switch (step.reduce) {
    case TENT_SUM:
    case TENT_AVG:
      is_bool ? at::bitwise_or_out(to, left, right) : at::add_out(to, left, right);
      return;
    case TENT_PRODUCT:
      is_bool ? at::bitwise_and_out(to, left, right) : at::mul_out(to, left, right);
      return;
    case TENT_MIN:
      is_bool ? at::bitwise_and_out(to, left, right) : at::minimum_out(to, left, right);
      return;
    case TENT_MAX:
      is_bool ? at::bitwise_or_out(to, left, right) : at::maximum_out(to, left, right);
      return;
    case TENT_BAND:
      at::bitwise_and_out(to, left, right);
      return;
    case TENT_BOR:
      at::bitwise_or_out(to, left, right);
      return;
    case TENT_BXOR:
      at::bitwise_xor_out(to, left, right);
      return;
    default:
      TORCH_CHECK(false, "no such reduction: ", step.reduce);
  }
}

}  // namespace

std::string why_not_on_gpu(std::int32_t reduce, std::int32_t dtype) {
  const bool needs_sign = reduce == TENT_MIN || reduce == TENT_MAX || reduce == TENT_AVG;
  if (!needs_sign || !is_wide_unsigned(dtype)) return "";
  return "torch has no minimum, maximum or division of unsigned numbers of more than 8 bits on "
         "GPUs: convert the tensor to a signed dtype";
}

Arithmetic::~Arithmetic() {
  if (!thread_.joinable()) return;
  if (process_ != getpid()) {
    thread_.detach();
    return;
  }
  {
    const std::lock_guard<std::mutex> guard(shared_->mutex);
    shared_->ended = true;
  }
  shared_->wanted.notify_one();
  thread_.join();
}

TentCompute Arithmetic::on(const at::Device& device, TentBuffer scratch) {
  const std::lock_guard<std::mutex> guard(shared_->mutex);
  std::unique_ptr<Desk>& desk = shared_->desks[device.index()];
  if (!desk) desk = std::make_unique<Desk>(Desk{shared_.get(), pool_stream(device)});
  if (!thread_.joinable()) {
    process_ = getpid();
    thread_ = std::thread([shared = shared_] { run(shared); });
  }
  return {desk.get(), &take, scratch};
}

void Arithmetic::take(void* desk, const TentStep* step) {
  const auto* at = static_cast<const Desk*>(desk);
  {
    const std::lock_guard<std::mutex> guard(at->shared->mutex);
    at->shared->steps.emplace_back(at, *step);
  }
  at->shared->wanted.notify_one();
}

void Arithmetic::run(const std::shared_ptr<Shared>& shared) {
  const at::NoGradGuard no_grad;
  std::unique_lock<std::mutex> lock(shared->mutex);
  for (;;) {
    shared->wanted.wait(lock, [&] { return shared->ended || !shared->steps.empty(); });
    if (shared->steps.empty()) return;
    const auto [desk, step] = shared->steps.front();
    shared->steps.pop_front();
    lock.unlock();
    std::string error;
    std::uint64_t stream = 0;
    try {
      stream = driver_stream(desk->stream);
      do_step(desk->stream, step);
    } catch (const c10::Error& thrown) {
      error = thrown.what_without_backtrace();
    } catch (const std::exception& thrown) {
      error = thrown.what();
    }
    shared->api->computed(shared->api->engine, &step, stream,
                          error.empty() ? nullptr : error.c_str());
    lock.lock();
  }
}

void Arithmetic::do_step(const c10::Stream& stream, const TentStep& step) {
  const c10::StreamGuard on(stream);
  const auto tensor = [&](std::uint64_t address) {
    return tensor_at(stream.device(), address, step.bytes, kDtypes[step.dtype]);
  };
  at::Tensor to = tensor(step.to);
  if (step.kind == TENT_COMBINE) return combine(step, to, tensor(step.left), tensor(step.right));
  if (step.kind == TENT_COPY) {
    to.copy_(tensor(step.left));
  } else if (to.is_floating_point() || to.is_complex()) {
    to.div_(step.by);
  } else {
    to.div_(step.by, "trunc");
  }
}

}  // namespace tent
