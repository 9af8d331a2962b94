// Stage: c10d. The reductions of collectives on GPUs: torch's own kernels, queued by one thread, on
// a stream of torch's pool for each device. Owned by GroupLink; the engine gives steps, and is told
// when they are queued.
// Threads: on() on a caller's; take() on whichever drives the engine, under its lock: it only takes
// note. The thread holds no lock while it calls torch or the engine. Lock order: the engine's lock,
// then ours. What always holds: whoever ends this has seen all its collectives end. In a child of
// fork, which has no such thread, nothing of it is touched.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "c10d/streams.h"
#include "engine/c_api.h"

namespace tent {

// Why torch has no kernel for the reduction on a GPU; "" when it has.
std::string why_not_on_gpu(std::int32_t reduce, std::int32_t dtype);

class Arithmetic {
 public:
  explicit Arithmetic(const TentApi* api) : shared_(std::make_shared<Shared>(api)) {}
  ~Arithmetic();
  Arithmetic(const Arithmetic&) = delete;
  Arithmetic& operator=(const Arithmetic&) = delete;

  // For one collective of tensors on this device.
  TentCompute on(const at::Device& device, TentBuffer scratch);

 private:
  struct Shared;
  struct Desk {  // for the steps on one device
    Shared* shared;
    c10::Stream stream;
  };
  struct Shared {
    explicit Shared(const TentApi* table) : api(table) {}
    const TentApi* const api;
    std::mutex mutex;
    std::condition_variable wanted;
    std::map<c10::DeviceIndex, std::unique_ptr<Desk>> desks;  // under the mutex, as what follows
    std::deque<std::pair<const Desk*, TentStep>> steps;
    bool ended = false;
  };
  static void take(void* desk, const TentStep* step);
  static void run(const std::shared_ptr<Shared>& shared);
  static void do_step(const c10::Stream& stream, const TentStep& step);

  const std::shared_ptr<Shared> shared_;
  std::thread thread_;  // from the first on(); under the mutex
  int process_ = 0;     // whose thread it is
};

}  // namespace tent
