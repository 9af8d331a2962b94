// Stage: c10d. The parts of one Work until their end: see the header.
#include "c10d/pending.h"

#include <ATen/core/List.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/types.h"

namespace tent {

namespace {

constexpr std::size_t kTextMax = 1024;

std::int64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

c10::IValue as_value(const Pending::Outputs& outputs) {
  if (outputs.empty()) return c10::IValue(std::vector<at::Tensor>());
  if (outputs.size() == 1) return c10::IValue(outputs[0]);
  return c10::IValue(outputs);
}

c10::TypePtr type_of(const Pending::Outputs& outputs) {
  const c10::TypePtr list = c10::ListType::create(c10::TensorType::get());
  return outputs.size() > 1 ? c10::ListType::create(list) : list;
}

// The exception types that users of torch.distributed catch.
std::exception_ptr exception_for(Code code, const std::string& text) {
  const c10::SourceLocation here{__func__, __FILE__, __LINE__};
  switch (code) {
    case Code::Timeout:
      return std::make_exception_ptr(::c10d::TimeoutError(here, text));
    case Code::PeerLost:
    case Code::Unreachable:
      return std::make_exception_ptr(::c10d::DistNetworkError(here, text));
    default:
      return std::make_exception_ptr(c10::DistBackendError(here, text));
  }
}

}  // namespace

Pending::~Pending() {
  for (const Part& part : parts_) link_->api->release(part.work);
}

void Pending::add(::TentWork* part, std::string label) {
  parts_.push_back({part, std::move(label)});
}

void Pending::uses(const at::Device& device) {
  if (std::find(devices_.begin(), devices_.end(), device) == devices_.end())
    devices_.push_back(device);
}

bool Pending::wait(std::int64_t timeout_ns) {
  if (done_.load(std::memory_order_acquire)) return true;
  const std::int64_t began = timeout_ns < 0 ? 0 : now_ns();
  for (const Part& part : parts_) {
    const std::int64_t left =
        timeout_ns < 0 ? -1 : std::max<std::int64_t>(0, timeout_ns - (now_ns() - began));
    if (!link_->api->wait(part.work, left)) {
      TORCH_CHECK(timeout_ns >= 0,
                  "the engine of this process group is not there any more: it was "
                  "closed, or this process is a fork of the one that made it");
      return false;
    }
  }
  complete();
  return true;
}

bool Pending::is_done() {
  if (done_.load(std::memory_order_acquire)) return true;
  for (const Part& part : parts_)
    if (!link_->api->done(part.work)) return false;
  complete();
  return true;
}

std::exception_ptr Pending::error() {
  return done_.load(std::memory_order_acquire) ? error_ : nullptr;
}

void Pending::complete() {
  std::function<void()> end;
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (done_.load(std::memory_order_relaxed)) return;
    for (const Part& part : parts_)
      if (error_ == nullptr) error_ = error_of(part);
    try {
      for (const at::Device& device : devices_) streams_.push_back(pool_stream(device));
      const c10::MultiStreamGuard on(streams_);
      if (error_ == nullptr && staging.finish()) record_written();
    } catch (...) {
      error_ = std::current_exception();
    }
    staging = Staging();
    end.swap(at_end);
    done_.store(true, std::memory_order_release);
  }
  if (end) end();
  complete_future();
}

void Pending::record_written() {
  for (const c10::Stream& stream : streams_) {
    written_.emplace_back(stream.device_type());
    written_.back().record(stream);
  }
}

void Pending::order_current_streams() {
  for (const c10::Event& event : written_) event.block(current_stream(event.device()));
}

std::exception_ptr Pending::error_of(const Part& part) {
  char text[kTextMax] = "";
  std::int32_t source = -1;
  const auto code = Code(link_->api->status(part.work, text, sizeof text, &source));
  if (source >= 0) source_ = source;
  if (code == Code::Ok) return nullptr;
  link_->last_code = int(code);
  return exception_for(code, part.label.empty() ? text : part.label + ": " + text);
}

c10::intrusive_ptr<c10::ivalue::Future> Pending::future() {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (future_) return future_;
    future_ = c10::make_intrusive<c10::ivalue::Future>(type_of(outputs), devices_);
  }
  if (is_done())
    complete_future();
  else
    arm();
  return future_;
}

// The future's callbacks run here, with no lock held.
void Pending::complete_future() {
  c10::intrusive_ptr<c10::ivalue::Future> future;
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (!future_ || future_told_) return;
    future_told_ = true;
    future = future_;
  }
  const c10::MultiStreamGuard on(streams_);
  if (error_ != nullptr)
    future->setError(error_);
  else
    future->markCompleted(as_value(outputs));
}

void Pending::cancel() {
  for (const Part& part : parts_) link_->api->cancel(part.work);
}

void Pending::finish_alone() {
  if (!is_done()) arm();
}

// Lets the notifier call when a part that still runs has ended. It holds this object until then.
void Pending::arm() {
  for (const Part& part : parts_) {
    if (link_->api->done(part.work)) continue;
    auto* self = new std::shared_ptr<Pending>(shared_from_this());
    const auto ended = [](void* context) {
      auto* held = static_cast<std::shared_ptr<Pending>*>(context);
      const std::shared_ptr<Pending> pending = std::move(*held);
      delete held;
      if (!pending->is_done()) pending->arm();
    };
    link_->api->when_done(part.work, ended, self);
    return;
  }
  complete();
}

}  // namespace tent
