// Stage: engine. See fork_guard.h.
#include "engine/fork_guard.h"

#include <pthread.h>
#include <unistd.h>

#include <mutex>
#include <vector>

namespace tent {
namespace {

struct Guards {
  std::mutex mutex;  // before every engine lock
  std::vector<ForkGuard*> all;
};

Guards& guards() {
  static Guards* guards = new Guards;  // never destroyed: forks may come after static destructors
  return *guards;
}

}  // namespace

ForkGuard::ForkGuard(Lock& lock, const Exchange& exchange) : lock_(lock), exchange_(exchange) {
  static const int hooked = pthread_atfork(prepare, in_parent, in_child);
  (void)hooked;  // fails only without memory; then a child is merely not warned
  const std::lock_guard guard(guards().mutex);
  guards().all.push_back(this);
}

ForkGuard::~ForkGuard() {
  const std::lock_guard guard(guards().mutex);
  std::erase(guards().all, this);
}

void ForkGuard::prepare() {
  guards().mutex.lock();
  for (ForkGuard* guard : guards().all) guard->lock_.lock();
}

void ForkGuard::in_parent() {
  for (ForkGuard* guard : guards().all) guard->lock_.unlock();
  guards().mutex.unlock();
}

void ForkGuard::in_child() {
  for (ForkGuard* guard : guards().all) {
    guard->forked_ = true;
    for (const int fd : guard->exchange_.descriptors()) ::close(fd);
    guard->lock_.unlock();
  }
  guards().mutex.unlock();
}

}  // namespace tent
