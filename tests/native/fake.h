// Stage: tests. The world of the fake libibverbs: devices, queue pairs and the fabric between them,
// all in one process and under one mutex. See fake_verbs.cpp.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "drivers/verbs_abi.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fake {

using namespace tent;
using Clock = std::chrono::steady_clock;
using Guard = std::lock_guard<std::mutex>;
using Time = Clock::time_point;
using Seconds = std::chrono::duration<double>;

inline constexpr int kDevices = 4;
inline constexpr std::uint32_t kLocalProtection = 4;

struct Channel : ibv::CompChannel {
  int write_fd = -1;
};

struct Queue : ibv::Cq {
  std::deque<ibv::Wc> done, held;
  std::multimap<Time, ibv::Wc> late;  // by when they are told
  int device = 0;
  bool armed = false;
};

struct Work {
  ibv::SendWr wr;
  std::vector<ibv::Sge> sges;
  std::vector<std::uint8_t> carried;  // inline data
  std::uint64_t bytes = 0;
  Time ready;          // when the fabric has carried it
  Time stuck_since{};  // it could be carried, but nobody takes it
};

struct Receive {
  std::uint64_t wr_id;
  std::vector<ibv::Sge> sges;
};

struct Pair : ibv::Qp {
  int device = 0;
  ibv::QpState now = ibv::kReset;
  std::uint32_t peer = 0;
  std::uint32_t mtu = 0;  // of its packets
  std::deque<Work> sends;
  std::deque<Receive> receives;
  Time sends_told{}, receives_told{};  // when the last completion of each is told
};

struct Region : ibv::Mr {
  int rights = 0;
  std::uint8_t* shadow = nullptr;  // of a GPU's memory: where its bytes really are
  std::size_t mapped = 0;          // bytes of it that are this region's mapping
};

struct Machine {           // one device; several contexts may have it open
  double bytes_per_s = 0;  // 0: everything is carried at once
  double latency_s = 0;
  Time free_at{};
  bool cut = false;  // silent loss
  bool port_up = true;
  bool hold = false;  // completions are held back
  double late_s = 0;  // ... or told so much later at most, those of different pairs in any order
  bool misses_gpus = false;  // a GPU's memory can be registered, but is not reached
  bool lingers = false;      // a read that was under way lands just before its flush is told
  std::uint32_t fail_next = 0;
  bool join_gate = false;                  // a queue pair that is to be joined waits
  int open_errno = 0;                      // it cannot be opened
  std::uint32_t mtu = 5;                   // of its port, as the verbs number it
  std::uint64_t carried_max = UINT64_MAX;  // work of more bytes is lost silently
  int refuse_errno = 0;                    // of registrations above refuse_above bytes
  std::uint64_t refuse_above = 0;
  double gate_s = 0;  // how long a registration waits, but for so many
  int passing = 0;
  int waiting = 0;
  std::uint64_t registered_bytes = 0;
  std::uint64_t registered_bytes_max = UINT64_MAX;  // more is refused with ENOMEM
};

struct Opened : ibv::Context {
  int index = 0, event_fd = -1;
};

struct World {
  std::mutex mutex;
  std::condition_variable changed, gate;
  bool clockwork = false;  // the thread that carries what takes time runs
  std::mt19937 dice;
  Machine machines[kDevices];
  std::map<std::uint32_t, Pair*> pairs;
  std::set<Region*> regions;
  std::set<Opened*> opened;
  std::set<Queue*> queues;
  std::uint32_t next_number = 17;
  double retry_s = 0.1;
  std::uint64_t (*peer_memory)(std::uint64_t) = nullptr;  // nvidia-peermem: the bytes of an address
  std::uint64_t registrations = 0, messages = 0, reads = 0;  // that were ever made or posted
};

World& world();
// Where the bytes of registered memory really are.
std::uint8_t* bytes_at(const World& w, std::uint32_t key, std::uint64_t address);
bool carry(World& w, Pair& pair);  // what can be carried of its sends; true when anything was
void carry_all(World& w);
void flush(World& w, Pair& pair);
void start_clockwork(World& w);
void tell(Queue* queue, const ibv::Wc& wc);
void tell_late(World& w, Time until);  // what is due by then

}  // namespace fake
