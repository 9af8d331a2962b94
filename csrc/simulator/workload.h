// Stage: tests. What the simulated processes ask of each other, drawn from the seed: messages,
// one-sided reads and writes, notifications, cancels, timeouts, revocations.
// Owned by World; one thread.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "simulator/profile.h"
#include "simulator/tracked.h"

namespace tent::sim {

struct World;

class Workload {
 public:
  explicit Workload(World& world) : world_(world) {}
  void build();  // plans the first operations

  // ---- events ----------------------------------------------------------------------------------
  void operate();
  void post(std::uint32_t message, int side);  // side 0: the send, 1: the receive
  void cancel(std::uint32_t transfer);
  void after_end(const Tracked& tracked);  // sometimes asks for more

  // Memory and a layout for `bytes` in the process's arena; false: it is full.
  bool take_local(std::uint32_t process, std::uint64_t bytes, Tracked& tracked);

 private:
  struct Message {
    std::uint32_t from = 0, to = 0, pairing = 0;
    std::uint64_t tag = 0;
    std::array<std::uint64_t, 2> bytes{};
    std::array<std::uint32_t, 2> meta{};
    bool any_source = false, in_order = false, mismatched = false;
  };
  void plan_message(Message message, bool send, bool recv);
  void message(bool send, bool recv, bool mismatched);
  void in_order();
  void any_source();
  void one_sided(Request::Op op, bool cache, bool forbidden);

  bool draw_pair(std::uint32_t& from, std::uint32_t& to, std::uint32_t& pairing);
  std::uint64_t draw_bytes();
  RailKinds draw_rails(Tracked& tracked);
  void submit(Tracked tracked, Request request, bool may_be_ended);

  World& world_;
  std::vector<Message> messages_;
  std::vector<std::array<std::uint32_t, 2>> ordinals_;  // per tag
  std::uint64_t next_tag_ = 0;
  std::uint32_t follow_ups_ = 0;
};

}  // namespace tent::sim
