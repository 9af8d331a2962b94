// Stage: c10d. Sends and receives between two ranks, and the barrier that names who is missing.
#include <algorithm>
#include <utility>

#include "c10d/backend.h"
#include "c10d/work.h"
#include "core/types.h"

namespace tent {

namespace {

// Tags of users are ints, so these never meet them.
constexpr std::uint64_t kMonitoredTags = std::uint64_t(1) << 63;

std::int64_t since_ms(std::chrono::steady_clock::time_point start) {
  const auto passed = std::chrono::steady_clock::now() - start;
  return std::chrono::duration_cast<std::chrono::milliseconds>(passed).count();
}

}  // namespace

TentBackend::WorkRef TentBackend::message(::c10d::OpType type, Tensors& tensors, int other,
                                          int tag) {
  const bool is_send = type == ::c10d::OpType::SEND, is_any = type == ::c10d::OpType::RECVANYSOURCE;
  const char* name = is_send ? "send" : is_any ? "recvAnysource" : "recv";
  const Complain complain = complain_as(name);
  check_single(complain, tensors);
  TORCH_CHECK(tag >= 0, "Tag must be nonnegative");
  if (!is_any && (other < 0 || other >= size_ || other == rank_))
    complain(c10::str("rank ", other, " is not another rank of this group of ", size_));

  const std::shared_ptr<Pending> pending = begin();
  const at::Tensor memory =
      is_send ? pending->staging.to_read(tensors[0]) : pending->staging.to_fill(tensors[0]);
  const TentBuffer buffer = buffer_of(memory);
  const TentPlace place = usable(*pending, memory.device(), {buffer});
  const std::int64_t timeout = nanoseconds(::c10d::kUnsetTimeout);
  const auto number = std::uint64_t(tag);
  std::string label = c10::str(name, " on rank ", rank_, " of ", size_);
  if (!is_any) label += c10::str(is_send ? " to" : " from", " rank ", other);
  if (tag != 0) label += c10::str(", tag ", tag);
  pending->add(is_send ? api_->send(api_->engine, group_, other, number, buffer, place, timeout)
                       : api_->recv(api_->engine, group_, is_any ? -1 : other, number, buffer,
                                    place, timeout),
               std::move(label));
  if (!is_send) pending->outputs.push_back(tensors);
  const char* title = is_send ? "tent:send" : is_any ? "tent:recvAnySource" : "tent:recv";
  return end(type, title, tensors, pending);
}

TentBackend::WorkRef TentBackend::send(Tensors& tensors, int to, int tag) {
  return message(::c10d::OpType::SEND, tensors, to, tag);
}

TentBackend::WorkRef TentBackend::recv(Tensors& tensors, int from, int tag) {
  return message(::c10d::OpType::RECV, tensors, from, tag);
}

TentBackend::WorkRef TentBackend::recvAnysource(Tensors& tensors, int tag) {
  return message(::c10d::OpType::RECVANYSOURCE, tensors, -1, tag);
}

// Rank 0 hears of every rank, then lets all go on. The words are those of ProcessGroupGloo, which
// users and tests look for.
void TentBackend::monitoredBarrier(const ::c10d::BarrierOptions& opts, bool wait_all_ranks) {
  const std::int64_t timeout_ms = nanoseconds(opts.timeout) / 1'000'000;
  const auto start = std::chrono::steady_clock::now();
  const std::uint64_t tag = kMonitoredTags | sequence_++;
  const auto left = [&] {
    return std::max<std::int64_t>(0, timeout_ms - since_ms(start)) * 1'000'000;
  };
  const TentBuffer nothing{0, 0};
  const TentPlace host{TENT_HOST, 0};
  const auto send_to = [&](int rank) {
    Pending pending(link_);
    pending.add(api_->send(api_->engine, group_, rank, tag, nothing, host, left()));
    pending.wait(-1);
    return pending.error();
  };
  const auto hear_from = [&](int rank) {
    Pending pending(link_);
    pending.add(api_->recv(api_->engine, group_, rank, tag, nothing, host, left()));
    pending.wait(-1);
    return pending.error();
  };
  if (rank_ != 0) {
    if (send_to(0) == nullptr && hear_from(0) == nullptr) return;
    C10D_THROW_ERROR(
        DistNetworkError, "[Rank ", rank_, "]: Rank ", rank_,
        " successfully reached monitoredBarrier, but received errors while waiting for "
        "send/recv from rank 0. Please check rank 0 logs for faulty rank.");
  }
  std::vector<int> missing;
  for (int rank = 1; rank < size_; ++rank) {
    TORCH_CHECK(wait_all_ranks || left() > 0,
                "[Rank 0]: Rank 0 timed out in monitoredBarrier after ", timeout_ms, " ms.");
    if (hear_from(rank) == nullptr) continue;
    missing.push_back(rank);
    if (!wait_all_ranks) break;
  }
  if (!missing.empty())
    C10D_THROW_ERROR(DistNetworkError, "[Rank 0]: Rank",
                     missing.size() > 1 || wait_all_ranks ? "s " : " ", c10::Join(", ", missing),
                     " failed to pass monitoredBarrier in ", timeout_ms, " ms");
  for (int rank = 1; rank < size_; ++rank)
    if (const std::exception_ptr error = send_to(rank)) std::rethrow_exception(error);
}

}  // namespace tent
