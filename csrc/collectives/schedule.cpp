// Stage: collectives. Building of schedules: see the header.
#include "collectives/schedule.h"

namespace tent {

namespace {
constexpr std::uint64_t kScratchAlignment = 64;
}

std::uint32_t Schedule::add(Step step, After after) {
  step.first_edge = std::uint32_t(edges.size());
  for (std::uint32_t earlier : after)
    if (earlier != kNoStep) edges.push_back(earlier);
  step.edge_count = std::uint32_t(edges.size()) - step.first_edge;
  steps.push_back(step);
  return std::uint32_t(steps.size() - 1);
}

std::uint32_t Schedule::send(std::int32_t to_rank, std::uint32_t channel, Place from,
                             std::uint64_t bytes, After after) {
  return add(
      {.kind = StepKind::Send, .peer = to_rank, .channel = channel, .bytes = bytes, .left = from},
      after);
}

std::uint32_t Schedule::recv(std::int32_t from_rank, std::uint32_t channel, Place to,
                             std::uint64_t bytes, After after) {
  return add(
      {.kind = StepKind::Recv, .peer = from_rank, .channel = channel, .bytes = bytes, .to = to},
      after);
}

std::uint32_t Schedule::combine(Place to, Place left, Place right, std::uint64_t bytes,
                                After after) {
  return add({.kind = StepKind::Reduce, .bytes = bytes, .to = to, .left = left, .right = right},
             after);
}

std::uint32_t Schedule::divide(Place to, std::uint64_t bytes, After after) {
  return add({.kind = StepKind::Divide, .bytes = bytes, .to = to}, after);
}

std::uint32_t Schedule::copy(Place to, Place from, std::uint64_t bytes, After after) {
  return add({.kind = StepKind::Copy, .bytes = bytes, .to = to, .left = from}, after);
}

Place Schedule::scratch(std::uint64_t bytes) {
  Place place{Space::Scratch, 0, scratch_bytes};
  scratch_bytes += (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
  return place;
}

}  // namespace tent
