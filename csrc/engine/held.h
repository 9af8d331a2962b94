// Stage: engine. The engine lock while it is held, and what its release owes: all wishes carried
// out, then, with the lock free again, the sleepers woken and the notifier told. A local variable
// of one thread; never take a second one while it lives.
#pragma once

#include <mutex>
#include <utility>

#include "engine/exchange.h"
#include "engine/lock.h"
#include "engine/notifier.h"

namespace tent {

class Held {
 public:
  Held(Lock& lock, Exchange& exchange, Notifier& notifier)
      : lock_(lock), exchange_(exchange), notifier_(notifier) {
    lock_.lock();
  }
  Held(Lock& lock, Exchange& exchange, Notifier& notifier, std::adopt_lock_t)
      : lock_(lock), exchange_(exchange), notifier_(notifier) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    exchange_.settle();
    if (exchange_.operations.aftermath().empty()) {
      lock_.unlock();
      return;
    }
    Aftermath aftermath = std::exchange(exchange_.operations.aftermath(), {});
    lock_.unlock();
    for (const auto& sleeper : aftermath.sleepers) sleeper->wake();
    notifier_.add(std::move(aftermath));
  }
  Exchange* operator->() { return &exchange_; }

 private:
  Lock& lock_;
  Exchange& exchange_;
  Notifier& notifier_;
};

}  // namespace tent
