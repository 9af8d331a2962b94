// Stage: transport. See retirement.h.
#include "transports/rdma/retirement.h"

#include <pthread.h>

#include <utility>

namespace tent {

void RetiredPair::destroy(const Verbs& verbs) {
  if (qp != nullptr) verbs.destroy_qp(std::exchange(qp, nullptr));
  for (RdmaArena* memory : {&arena, &bounce}) {
    if (memory->mr != nullptr) verbs.dereg_mr(std::exchange(memory->mr, nullptr));
    memory->bytes.reset();
  }
}

Retirement::~Retirement() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
  collect();
}

void Retirement::add(const Verbs& verbs, RetiredPair pair) {
  ++pairs_;
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(pair));
  }
  if (thread_.joinable()) {
    changed_.notify_one();
    return;
  }
  thread_ = std::thread([this, &verbs] { run(verbs); });
  pthread_setname_np(thread_.native_handle(), "tent-rdma-end");
}

void Retirement::collect() {
  if (pairs_ == 0) return;
  std::vector<RetiredPair> ended;
  {
    const std::lock_guard lock(mutex_);
    ended.swap(destroyed_);
  }
  for (const RetiredPair& pair : ended) pair.device->leave(pair.seat);
  pairs_ -= ended.size();
}

void Retirement::run(const Verbs& verbs) {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    std::vector<RetiredPair> now = std::exchange(waiting_, {});
    lock.unlock();
    for (RetiredPair& pair : now) pair.destroy(verbs);
    lock.lock();
    for (RetiredPair& pair : now) destroyed_.push_back(std::move(pair));
  }
}

}  // namespace tent
