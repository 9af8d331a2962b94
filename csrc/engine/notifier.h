// Stage: engine. The thread that tells the outside of ended transfers: Python's `on_done` with a
// batch of ids, and the C API's callbacks. It holds no lock while it calls, so they may call the
// engine. Any thread adds; the engine lock may be held but need not be.
#pragma once

#include <condition_variable>
#include <cstdint>
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
  // Calls what was added before, then ends the thread. Called by a callback of this very thread it
  // only lets it go: the thread ends when the callback has returned.
  void stop();

 private:
  struct Shared {  // outlives the Notifier when a callback destroys it
    std::mutex mutex;
    std::condition_variable wanted;
    std::vector<std::uint64_t> ids;
    std::vector<std::pair<EndCall, void*>> calls;
    std::shared_ptr<OnDone> callback;
    bool stopping = false;
  };
  static void run(std::shared_ptr<Shared> shared);

  std::shared_ptr<Shared> shared_;
  std::thread thread_;
};

}  // namespace tent
