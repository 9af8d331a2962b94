// Stage: engine. See notifier.h.
#include "engine/notifier.h"

#include <pthread.h>

namespace tent {

Notifier::Notifier() : shared_(std::make_shared<Shared>()), thread_(run, shared_) {
  pthread_setname_np(thread_.native_handle(), "tent-notifier");
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
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->stopping = true;
    shared_->wanted.notify_one();
  }
  if (!thread_.joinable()) return;
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

void Notifier::run(std::shared_ptr<Shared> shared) {
  for (;;) {
    std::unique_lock lock(shared->mutex);
    shared->wanted.wait(lock, [&] {
      return shared->stopping || !shared->calls.empty() ||
             (shared->callback && !shared->ids.empty());
    });
    const auto calls = std::exchange(shared->calls, {});
    const auto callback = shared->callback;
    const auto ids = callback ? std::exchange(shared->ids, {}) : std::vector<std::uint64_t>();
    lock.unlock();
    if (calls.empty() && ids.empty()) return;  // stopping, and everything has been told
    for (const auto& [fn, context] : calls) fn(context);
    if (!ids.empty()) (*callback)(ids);
  }
}

}  // namespace tent
