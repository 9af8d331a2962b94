// Stage: transport. Queue pairs that have ended: already in the error state and drained, so that
// nothing lands any more, they are destroyed here, by a thread of their own. A driver may take
// seconds for that (rdma_rxe waits for its packets, wherever these queue), and the engine's lock is
// not held so long.
// add() and collect() under the engine lock; the thread starts with the first pair. Owned by
// RdmaTransport; ends before the devices. What always holds: a pair's buffers and its seat live as
// long as the pair.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "transports/rdma/device.h"

namespace tent {

struct RdmaArena {  // memory that a device may use for one link
  std::unique_ptr<std::uint8_t[]> bytes;
  ibv::Mr* mr = nullptr;
};

struct RetiredPair {
  RdmaDevice* device = nullptr;
  std::uint16_t seat = 0;
  ibv::Qp* qp = nullptr;
  RdmaArena arena, bounce;

  void destroy(const Verbs& verbs);  // all but the seat
};

class Retirement {
 public:
  Retirement() = default;
  ~Retirement();  // waits until all are destroyed
  Retirement(const Retirement&) = delete;
  Retirement& operator=(const Retirement&) = delete;

  void add(const Verbs& verbs, RetiredPair pair);
  // Gives the seats of destroyed pairs back.
  void collect();

 private:
  void run(const Verbs& verbs);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<RetiredPair> waiting_, destroyed_;
  bool stopping_ = false;
  std::size_t pairs_ = 0;  // added and not collected; under the engine lock only
  std::thread thread_;
};

}  // namespace tent
