// Stage: engine. See notifier.h.
#include "engine/notifier.h"

#include <pthread.h>

#include <utility>

namespace tent {

namespace {
constexpr std::size_t kThreadsMax = 32;  // so deep may callbacks wait for each other
}  // namespace

thread_local const Notifier::Shared* Notifier::calling_for_ = nullptr;

Notifier::Notifier() : shared_(std::make_shared<Shared>()) {
  const std::lock_guard lock(shared_->mutex);
  start_thread();
}

void Notifier::start_thread() {
  threads_.emplace_back(run, shared_);
  pthread_setname_np(threads_.back().native_handle(), "tent-notifier");
}

void Notifier::lend_hand() {
  if (calling_for_ != shared_.get()) return;
  const std::lock_guard lock(shared_->mutex);
  if (shared_->idle == 0 && !shared_->stopping && threads_.size() < kThreadsMax) start_thread();
}

void Notifier::on_done(OnDone callback) {
  auto next = callback ? std::make_shared<OnDone>(std::move(callback)) : nullptr;
  const std::lock_guard lock(shared_->mutex);
  shared_->callback.swap(next);  // the old one may need the GIL to die: not under this lock
  shared_->wanted.notify_one();
}

void Notifier::add(Aftermath&& aftermath) {
  // Waking this thread for nothing costs the sleeper that was just woken its processor.
  if (aftermath.watched.empty() && aftermath.end_calls.empty()) return;
  {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->stopping) return;
    auto& ids = shared_->ids;
    auto& calls = shared_->calls;
    ids.insert(ids.end(), aftermath.watched.begin(), aftermath.watched.end());
    calls.insert(calls.end(), aftermath.end_calls.begin(), aftermath.end_calls.end());
  }
  shared_->wanted.notify_one();
}

void Notifier::stop() {
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->stopping = true;
    shared_->wanted.notify_all();
    threads.swap(threads_);
  }
  const bool is_callback = calling_for_ == shared_.get();
  for (std::thread& thread : threads) is_callback ? thread.detach() : thread.join();
}

void Notifier::run(std::shared_ptr<Shared> shared) {
  calling_for_ = shared.get();
  for (;;) {
    std::unique_lock lock(shared->mutex);
    ++shared->idle;
    shared->wanted.wait(lock, [&] {
      return shared->stopping || !shared->calls.empty() ||
             (shared->callback && !shared->ids.empty());
    });
    --shared->idle;
    if (!shared->calls.empty()) {  // one at a time: it may wait for the next one
      const auto [fn, context] = shared->calls.front();
      shared->calls.pop_front();
      lock.unlock();
      fn(context);
      continue;
    }
    const auto callback = shared->callback;
    const auto ids = callback ? std::exchange(shared->ids, {}) : std::vector<std::uint64_t>();
    lock.unlock();
    if (ids.empty()) return;  // stopping, and everything has been told
    (*callback)(ids);
  }
}

}  // namespace tent
