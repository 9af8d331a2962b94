// Stage: tests. What the files of collectives_world.cpp share: messages under way, schedules as
// Python sees them, and arithmetic as a GPU would do it. One thread.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <vector>

#include "collectives/collectives.h"

namespace py = pybind11;
using namespace tent;

struct OpenMessage {  // one open transfer
  TransferId id;
  std::int32_t rank, peer;  // whose it is; the other one, -1: any
  bool is_send;
  std::uint64_t context, tag, address, bytes;
  TimeNs expires;
  Continuation* then;
  std::vector<std::uint8_t> buffered;  // of a send whose sender may have gone on
  bool ended = false;                  // its owner was told, or will be
};
using MessageRef = std::shared_ptr<OpenMessage>;

// Whether the send's bytes are for this receive.
inline bool fits(const OpenMessage& send, const OpenMessage& recv) {
  return send.is_send && !recv.is_send && send.peer == recv.rank && send.context == recv.context &&
         send.tag == recv.tag && (recv.peer < 0 || recv.peer == send.rank);
}

// collectives_world_plans.cpp
py::object planned(std::tuple<int, int, int, int> what, std::int32_t rank, std::int32_t size,
                   std::vector<std::uint64_t> inputs, std::vector<std::uint64_t> outputs,
                   std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, int> tuning);
void do_step(const TentStep& step);
