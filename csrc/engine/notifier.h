// Stage: engine. The thread that tells the outside of ended transfers: Python's `on_done` with a
// batch of ids, and the C API's callbacks. It holds no lock while it calls, so they may call the
// engine. Any thread adds; the engine lock may be held but need not be. What always holds: one
// thread calls, in order; more only once a callback may wait for another callback (lend_hand).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/operations.h"

namespace tent {

class Notifier {
 public:
  using OnDone = std::function<void(const std::vector<std::uint64_t>& ids)>;

  Notifier();
  ~Notifier() { stop(); }
  // Replaces the callback; ids that nobody could be told of yet are kept for it.
  void on_done(OnDone callback);
  void add(Aftermath&& aftermath);
  // For whoever asks, inside a callback, to be called at the end of something else: he may wait for
  // that right there, as communication hooks do. So there must be another thread to call him.
  void lend_hand();
  // Calls what was added before, then ends the threads. Called by a callback it only lets them go:
  // they end when their callbacks have returned.
  void stop();

 private:
  struct Shared {  // outlives the Notifier when a callback destroys it
    std::mutex mutex;
    std::condition_variable wanted;
    std::vector<std::uint64_t> ids;
    std::deque<std::pair<EndCall, void*>> calls;
    std::size_t idle = 0;  // threads that wait for something to call
    std::shared_ptr<OnDone> callback;
    bool stopping = false;
  };
  static void run(std::shared_ptr<Shared> shared);
  void start_thread();  // under the mutex

  static thread_local const Shared* calling_for_;  // null on threads that are not a Notifier's
  std::shared_ptr<Shared> shared_;
  std::vector<std::thread> threads_;  // under the mutex
};

}  // namespace tent
