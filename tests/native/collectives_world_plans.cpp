// Stage: tests. Schedules as Python sees them, and what is computed for them: see
// collectives_world.cpp.
#include <pybind11/stl.h>

#include <cstring>

#include "collectives/algorithms.h"
#include "collectives/reduce.h"
#include "collectives.h"

namespace {

py::tuple as_tuple(const Place& place) {
  return py::make_tuple(int(place.space), place.index, place.offset);
}

}  // namespace

// As a GPU would.
void do_step(const TentStep& step) {
  void* to = reinterpret_cast<void*>(step.to);
  const auto* left = reinterpret_cast<const void*>(step.left);
  const auto* right = reinterpret_cast<const void*>(step.right);
  if (step.kind == TENT_COPY)
    std::memcpy(to, left, step.bytes);
  else if (step.kind == TENT_DIVIDE)
    divide(step.dtype, to, step.bytes, step.by);
  else
    combine(step.reduce, step.dtype, to, left, right, step.bytes);
}

// (scratch bytes, [(kind, peer, channel, bytes, to, left, right, after)]) or the reason why not.
py::object planned(std::tuple<int, int, int, int> what, std::int32_t rank, std::int32_t size,
                   std::vector<std::uint64_t> inputs, std::vector<std::uint64_t> outputs,
                   std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, int> tuning) {
  const auto [kind, reduce, dtype, root] = what;
  const auto [small, chunk, buffered, direct] = tuning;
  Schedule schedule;
  const Status status = plan({kind, reduce, dtype, root, rank, size, inputs, outputs},
                             {small, chunk, buffered, std::int32_t(direct)}, schedule);
  if (!status.ok()) return py::str(status.text);
  py::list steps;
  for (const Step& s : schedule.steps) {
    const auto after = schedule.after(s);
    steps.append(py::make_tuple(int(s.kind), s.peer, s.channel, s.bytes, as_tuple(s.to),
                                as_tuple(s.left), as_tuple(s.right),
                                std::vector<std::uint32_t>(after.begin(), after.end())));
  }
  return py::make_tuple(schedule.scratch_bytes, steps);
}
