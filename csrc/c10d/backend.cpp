// Stage: c10d. The life of a process group, and how its operations start: see the header.
#include "c10d/backend.h"

#include <algorithm>
#include <utility>

#include "c10d/call.h"
#include "c10d/streams.h"
#include "c10d/work.h"
#include "core/types.h"

namespace tent {

namespace {

constexpr std::size_t kWhyMax = 1024;

// The same on all ranks of the new group, and different from every other context: it depends on the
// parent's, which was drawn at random, and on how often that was split.
std::uint64_t derived_context(std::uint64_t parent, std::uint64_t split,
                              const std::vector<int>& ranks) {
  std::uint64_t hash = parent;
  const auto mix = [&hash](std::uint64_t value) {  // a finaliser of 64-bit hashes
    hash ^= value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
    hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
    hash ^= hash >> 31;
  };
  mix(split);
  for (int rank : ranks) mix(std::uint64_t(rank));
  return hash & ~std::uint64_t(3);
}

}  // namespace

TentOptions::TentOptions(const Membership& membership) : Options("tent", membership.timeout) {
  group_name = membership.name;
  global_ranks_in_group = membership.global_ranks;
}

TentBackend::TentBackend(const TentApi* api, EngineOwner engine, Membership membership)
    : Backend(membership.rank, membership.size),
      api_(api),
      membership_(std::move(membership)),
      link_(std::make_shared<GroupLink>()),
      timeout_ms_(membership_.timeout.count()) {
  link_->api = api;
  link_->owner = std::move(engine);
  link_->arithmetic = std::make_unique<Arithmetic>(api);
  group_ = api->group_create(api->engine, membership_.context, membership_.rank, membership_.size,
                             membership_.peers.data());
  TORCH_CHECK(group_ != 0, "the engine of process group ", membership_.name, " is closed");
  init();
}

TentBackend::~TentBackend() { shutdown(); }

void TentBackend::shutdown() {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (std::exchange(is_shut_, true)) return;
  }
  api_->group_destroy(api_->engine, group_);
}

void TentBackend::abort() {
  api_->group_abort(api_->engine, group_, "abort() was called on this rank");
}

void TentBackend::setTimeout(std::chrono::milliseconds timeout) { timeout_ms_ = timeout.count(); }

c10::intrusive_ptr<::c10d::Backend::Options> TentBackend::getBackendOptions() {
  auto options = c10::make_intrusive<TentOptions>(membership_);
  options->timeout = std::chrono::milliseconds(timeout_ms_.load());
  return options;
}

::c10d::ErrorType TentBackend::getError() {
  switch (Code(link_->last_code.load())) {
    case Code::Ok:
      return ::c10d::ErrorType::SUCCESS;
    case Code::Timeout:
      return ::c10d::ErrorType::TIMEOUT;
    case Code::PeerLost:
      return ::c10d::ErrorType::REMOTE_ERROR;
    default:
      return ::c10d::ErrorType::COMM_ERROR;
  }
}

c10::intrusive_ptr<::c10d::Backend> TentBackend::split(const c10::intrusive_ptr<::c10d::Store>&,
                                                       const std::vector<int>& ranks,
                                                       const c10::intrusive_ptr<Options>& opts) {
  const std::uint64_t number = splits_++;
  const auto own = std::find(ranks.begin(), ranks.end(), rank_);
  if (own == ranks.end()) return nullptr;
  Membership part;
  part.rank = int(own - ranks.begin());
  part.size = int(ranks.size());
  part.context = derived_context(membership_.context, number, ranks);
  for (int rank : ranks) {
    TORCH_CHECK(rank >= 0 && rank < size_, "rank ", rank, " is not in this group of ", size_);
    part.peers.push_back(membership_.peers[std::size_t(rank)]);
    const auto& global = membership_.global_ranks;
    part.global_ranks.push_back(global.empty() ? std::uint64_t(rank) : global[std::size_t(rank)]);
  }
  part.name = opts ? opts->group_name : membership_.name + ":split:" + std::to_string(number);
  part.timeout = opts ? opts->timeout : std::chrono::milliseconds(timeout_ms_.load());
  return c10::make_intrusive<TentBackend>(api_, link_->owner, std::move(part));
}

std::int64_t TentBackend::nanoseconds(std::chrono::milliseconds timeout) const {
  const std::int64_t ms = timeout == ::c10d::kUnsetTimeout ? timeout_ms_.load() : timeout.count();
  return ms < INT64_MAX / 1'000'000 ? ms * 1'000'000 : INT64_MAX;
}

// Between startCoalescing and endCoalescing of a thread, all its operations are parts of one.
std::shared_ptr<Pending> TentBackend::begin() {
  if (coalescing_threads_.load(std::memory_order_relaxed) > 0) {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (auto found = coalescing_.find(std::this_thread::get_id()); found != coalescing_.end())
      return found->second;
  }
  return std::make_shared<Pending>(link_);
}

TentBackend::WorkRef TentBackend::end(::c10d::OpType type, const char* title, const Tensors& inputs,
                                      std::shared_ptr<Pending> pending) {
  if (coalescing_threads_.load(std::memory_order_relaxed) > 0) {
    const std::lock_guard<std::mutex> guard(mutex_);
    auto found = coalescing_.find(std::this_thread::get_id());
    // What counts is the Work of endCoalescing; this one has nothing to wait for.
    if (found != coalescing_.end() && found->second == pending)
      pending = std::make_shared<Pending>(link_);
  }
  return c10::make_intrusive<BackendWork>(rank_, type, title, inputs, std::move(pending),
                                          sequence_.load());
}

void TentBackend::startCoalescing() {
  const std::lock_guard<std::mutex> guard(mutex_);
  const bool is_new =
      coalescing_.emplace(std::this_thread::get_id(), std::make_shared<Pending>(link_)).second;
  TORCH_CHECK(is_new, "startCoalescing was called twice on this thread");
  ++coalescing_threads_;
}

TentBackend::WorkRef TentBackend::endCoalescing() {
  std::shared_ptr<Pending> pending;
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    auto found = coalescing_.find(std::this_thread::get_id());
    TORCH_CHECK(found != coalescing_.end(), "endCoalescing without startCoalescing on this thread");
    pending = std::move(found->second);
    coalescing_.erase(found);
    --coalescing_threads_;
  }
  return end(::c10d::OpType::COALESCED, "tent:coalesced", {}, std::move(pending));
}

void TentBackend::start(Pending& pending, const Call& call, std::chrono::milliseconds timeout) {
  TentCollectiveCall arguments = prepared(pending, call, timeout);
  arguments.tag = sequence_++;
  pending.add(api_->collective(api_->engine, group_, &arguments));
}

void TentBackend::start(Pending& pending, const Call& call, std::chrono::milliseconds timeout,
                        std::uint64_t number) {
  TentCollectiveCall arguments = prepared(pending, call, timeout);
  arguments.tag = number;
  pending.add(api_->collective(api_->engine, group_, &arguments));
}

TentPlace TentBackend::usable(Pending& pending, const at::Device& device,
                              const std::vector<TentBuffer>& buffers) const {
  if (device.is_cpu()) return {TENT_HOST, 0};
  const TentPlace place = place_of(device);
  char why[kWhyMax] = "";
  TORCH_CHECK(api_->can_use(api_->engine, place, buffers.data(), buffers.size(), why, sizeof why),
              "TentBackend cannot use a tensor on ", device, ": ", why);
  pending.uses(device);
  return place;
}

TentCollectiveCall TentBackend::prepared(Pending& pending, const Call& call,
                                         std::chrono::milliseconds timeout) const {
  TentCollectiveCall arguments{call.kind,
                               call.reduce,
                               call.dtype,
                               call.root,
                               call.inputs.data(),
                               call.inputs.size(),
                               call.outputs.data(),
                               call.outputs.size(),
                               0,
                               nanoseconds(timeout),
                               {TENT_HOST, 0},
                               {}};
  if (call.device.is_cpu()) return arguments;
  const std::string why = why_not_on_gpu(call.reduce, call.dtype);
  TORCH_CHECK(why.empty(), "TentBackend: ", why);
  std::vector<TentBuffer> buffers = call.inputs;
  buffers.insert(buffers.end(), call.outputs.begin(), call.outputs.end());
  arguments.place = usable(pending, call.device, buffers);
  const std::uint64_t bytes = api_->scratch_bytes(api_->engine, group_, &arguments);
  const at::Tensor scratch = pending.staging.scratch(call.device, bytes);
  arguments.compute = link_->arithmetic->on(call.device, buffer_of(scratch));
  return arguments;
}

}  // namespace tent
