// Stage: engine. What happens to an engine when its process forks: the parent notices nothing; in
// the child every call fails with a clear error, and the copies of the links' descriptors are
// closed, so that a peer still notices at once when the parent dies. A fork waits for every engine
// lock, so that the child finds nothing half done.
#pragma once

#include "engine/exchange.h"
#include "engine/lock.h"

namespace tent {

class ForkGuard {
 public:
  ForkGuard(Lock& lock, const Exchange& exchange);
  ~ForkGuard();
  ForkGuard(const ForkGuard&) = delete;
  ForkGuard& operator=(const ForkGuard&) = delete;

  // True in a child of the process that made the engine. Any thread.
  bool forked() const { return forked_; }

 private:
  static void prepare();
  static void in_parent();
  static void in_child();

  Lock& lock_;
  const Exchange& exchange_;
  bool forked_ = false;  // written only between fork and the child's first instruction
};

}  // namespace tent
