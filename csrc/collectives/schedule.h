// Stage: collectives. One rank's part of a collective as data: steps over symbolic places, and
// which step waits for which. Made by algorithms.h, run by collectives.h on the engine or in a
// simulator. A pure value: no address, no peer of an engine, no clock; the same call always gives
// the same one. Invariant: a step waits only for steps before it, so every schedule is free of
// cycles.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

namespace tent {

enum class Space : std::uint8_t { Input, Output, Scratch };

struct Place {  // where bytes lie: in one of the call's buffers, or in the schedule's scratch
                // memory
  Space space = Space::Scratch;
  std::uint32_t index = 0;  // of the buffer; 0 for Scratch
  std::uint64_t offset = 0;
};

constexpr Place operator+(Place place, std::uint64_t bytes) {
  place.offset += bytes;
  return place;
}

enum class StepKind : std::uint8_t {
  Send,    // left -> rank `peer`
  Recv,    // rank `peer` -> to
  Reduce,  // to = op(left, right); `to` may be `left` or `right`
  Divide,  // to = to / the number of ranks: the second half of an average
  Copy,    // to = left
};

struct Step {
  StepKind kind = StepKind::Copy;
  std::int32_t peer = -1;
  std::uint32_t channel = 0;  // Send, Recv: tells the messages between two ranks apart
  std::uint32_t first_edge = 0, edge_count = 0;  // in Schedule::edges: the steps this one waits for
  std::uint64_t bytes = 0;
  Place to{}, left{}, right{};
};

inline constexpr std::uint32_t kChannelBits = 24;
inline constexpr std::uint32_t kNoStep = UINT32_MAX;

struct Schedule {
  std::int32_t reduce = 0, dtype = 0;  // TentReduce, TentDtype: the same for all its steps
  std::int32_t ranks = 1;
  std::uint64_t scratch_bytes = 0;
  std::vector<Step> steps;
  std::vector<std::uint32_t> edges;

  using After = std::initializer_list<std::uint32_t>;  // kNoStep is allowed and means nothing
  // Each adds a step and returns its number.
  std::uint32_t send(std::int32_t to_rank, std::uint32_t channel, Place from, std::uint64_t bytes,
                     After after = {});
  std::uint32_t recv(std::int32_t from_rank, std::uint32_t channel, Place to, std::uint64_t bytes,
                     After after = {});
  std::uint32_t combine(Place to, Place left, Place right, std::uint64_t bytes, After after = {});
  std::uint32_t divide(Place to, std::uint64_t bytes, After after = {});
  std::uint32_t copy(Place to, Place from, std::uint64_t bytes, After after = {});
  // Reserves scratch memory, aligned for every dtype.
  Place scratch(std::uint64_t bytes);
  std::span<const std::uint32_t> after(const Step& step) const {
    return std::span(edges).subspan(step.first_edge, step.edge_count);
  }

 private:
  std::uint32_t add(Step step, After after);
};

}  // namespace tent
