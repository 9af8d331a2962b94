// Stage: transport. Registers pieces of memory before a transfer comes to them, by a thread of its
// own: a device may take milliseconds for a piece, and the engine's lock is not held so long.
// All calls under the engine lock; the thread starts with the first wish, and takes no lock but
// this one's, which is taken last. Owned by RdmaMemory. What always holds: when withdraw() returns,
// nothing of that range is or will be registered here. For this, and for a piece that is wanted
// now, it waits while that piece is being registered: as long as the engine would have taken for it
// itself, and never for another one.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "core/origin.h"
#include "drivers/verbs.h"

namespace tent {

enum class RdmaUse : std::uint8_t { Source = 0, Landing = 1 };  // peers read; our device writes

constexpr int rights_of(RdmaUse use) {
  return use == RdmaUse::Source ? ibv::kRemoteRead : ibv::kLocalWrite;
}

struct RdmaWish {
  ibv::Pd* pd = nullptr;
  RdmaUse use = RdmaUse::Source;
  const void* range = nullptr;  // whose it is; only compared
  std::uint64_t number = 0;     // of the piece
  std::uint64_t begin = 0, end = 0;
  Device device = kHost;

  bool same(const RdmaWish& other) const {
    return pd == other.pd && use == other.use && range == other.range && number == other.number;
  }
};

class Registrar {
 public:
  struct Done {
    RdmaWish wish;
    ibv::Mr* mr = nullptr;  // null: refused
    int (*dereg)(ibv::Mr*) = nullptr;
  };

  Registrar() = default;
  ~Registrar();
  Registrar(const Registrar&) = delete;
  Registrar& operator=(const Registrar&) = delete;

  void ask(const Verbs& verbs, const RdmaWish& wish);
  // It is wanted now: what is under way is waited for, what was not begun is taken back.
  void hurry(const RdmaWish& wish);
  std::optional<Done> next_done();
  void withdraw(const void* range);
  void withdraw_from(const ibv::Pd* pd);

 private:
  struct Asked {
    const Verbs* verbs = nullptr;
    RdmaWish wish;
  };
  template <class Which>
  void take_back(Which which);
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Asked> asked_;
  std::optional<RdmaWish> under_way_;
  std::deque<Done> done_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace tent
