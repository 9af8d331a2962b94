// Stage: engine. One per user of the data plane (usually one per process): the Node, its
// transports, the lock, and the threads. Any thread may call it; calls take the engine lock for a
// short time. What always holds: every wait ends; after close() no transfer runs and no thread is
// left. In a child of fork nothing works and everything says so.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/node.h"
#include "engine/c_api.h"
#include "engine/control_events.h"
#include "engine/crowd.h"
#include "engine/exchange.h"
#include "engine/fork_guard.h"
#include "engine/held.h"
#include "engine/lock.h"
#include "engine/notifier.h"
#include "engine/progress.h"
#include "engine/wheel.h"

namespace tent {

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  // Starts the threads. Throws std::system_error without descriptors or threads. In a child of fork
  // the engine is never destroyed: its threads and locks are the parent's.
  static std::shared_ptr<Engine> make(const EngineSettings& settings);
  ~Engine();

  // The lock and what it guards. Throws std::runtime_error once closed and in a child of fork.
  Held hold();
  // The same, false at once when another thread holds it.
  bool try_hold(std::optional<Held>& held);
  // Throws as hold() does.
  void check() const;
  bool forked() const { return fork_guard_.forked(); }

  // Drives until it is ready; false when `until` passed first.
  bool wait(Operation& operation, TimeNs until);
  bool wait_notification(SegmentId segment, TimeNs until);
  // Both return when nothing lands in the memory and nobody copies out of it any more.
  void close_segment(SegmentId segment);
  std::uint32_t revoke(SegmentId segment, const std::vector<std::int64_t>& blocks);  // new epoch

  PeerId add_peer(const std::string& name);
  // Takes the descriptors over, also when it throws std::runtime_error because there is no link.
  void add_link(PeerId peer, const LinkInfo& info, const Connection& connection);

  ControlEvents& events() { return events_; }
  Notifier& notifier() { return notifier_; }
  const Progress& progress() const { return progress_; }
  const TentApi* c_api() const;

  // Lets collectives that have ended for their caller hand over their last messages, says bye, ends
  // every transfer, joins the threads. A second caller returns at once.
  void close();

 private:
  class WaitSet {  // the epoll set that everything joins
   public:
    WaitSet();
    ~WaitSet();
    const int fd;
  };

  explicit Engine(const EngineSettings& settings);
  bool wait_ready(Waitable& what, TimeNs until, bool urgent);
  struct Drive {
    bool gave_up = false;  // nothing happened for a while; it had the wheel until then
    TimeNs watch = 0;      // ... and keeps watch until, from here on
  };
  Drive drive(Wheel::Turn turn, Waitable& what, TimeNs until, TimeNs spin);
  void await_readers(SegmentId segment);
  void linger();
  void end_everything();
  bool said_everything(Held& held);
  void stop_everything(Held& held);
  void open_or_throw();

  Lock lock_;
  WaitSet wait_set_;
  ControlEvents events_;
  Exchange exchange_;
  ForkGuard fork_guard_;
  Notifier notifier_;
  Wheel wheel_;
  Crowd crowd_;
  Progress progress_;
  std::unique_ptr<TentEngine> works_;
  std::vector<PeerId> peers_;  // engine lock; those that are alive, and some that were
  std::atomic<bool> closed_{false};
};

}  // namespace tent
