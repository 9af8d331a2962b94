// Stage: transport. See registrar.h.
#include "transports/rdma/registrar.h"

#include <pthread.h>

#include <algorithm>

#include "transports/rdma/gpu_memory.h"

namespace tent {

Registrar::~Registrar() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  for (const Done& done : done_) {
    if (done.mr != nullptr) done.dereg(done.mr);
  }
}

void Registrar::ask(const Verbs& verbs, const RdmaWish& wish) {
  {
    const std::lock_guard lock(mutex_);
    const auto same = [&](const auto& other) { return other.wish.same(wish); };
    if (std::any_of(asked_.begin(), asked_.end(), same) ||
        std::any_of(done_.begin(), done_.end(), same) || (under_way_ && under_way_->same(wish))) {
      return;
    }
    asked_.push_back({&verbs, wish});
  }
  if (thread_.joinable()) {
    changed_.notify_all();
    return;
  }
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "tent-rdma-reg");
}

void Registrar::hurry(const RdmaWish& wish) {
  std::unique_lock lock(mutex_);
  std::erase_if(asked_, [&](const Asked& asked) { return asked.wish.same(wish); });
  changed_.wait(lock, [&] { return !under_way_ || !under_way_->same(wish); });
}

std::optional<Registrar::Done> Registrar::next_done() {
  const std::lock_guard lock(mutex_);
  if (done_.empty()) return std::nullopt;
  const Done first = done_.front();
  done_.pop_front();
  return first;
}

void Registrar::withdraw(const void* range) {
  take_back([range](const RdmaWish& wish) { return wish.range == range; });
}

void Registrar::withdraw_from(const ibv::Pd* pd) {
  take_back([pd](const RdmaWish& wish) { return wish.pd == pd; });
}

template <class Which>
void Registrar::take_back(Which which) {
  std::unique_lock lock(mutex_);
  std::erase_if(asked_, [&](const Asked& asked) { return which(asked.wish); });
  changed_.wait(lock, [&] { return !under_way_ || !which(*under_way_); });
  std::erase_if(done_, [&](const Done& done) {
    const bool theirs = which(done.wish);
    if (theirs && done.mr != nullptr) done.dereg(done.mr);
    return theirs;
  });
}

void Registrar::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !asked_.empty(); });
    if (stopping_) return;
    const Asked now = asked_.front();
    asked_.pop_front();
    under_way_ = now.wish;
    lock.unlock();
    const RdmaWish& wish = now.wish;
    ibv::Mr* mr = register_memory(*now.verbs, wish.pd, wish.begin, wish.end, rights_of(wish.use),
                                  wish.device);
    lock.lock();
    done_.push_back({wish, mr, now.verbs->dereg_mr});
    under_way_.reset();
    changed_.notify_all();
  }
}

}  // namespace tent
