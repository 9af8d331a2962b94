// Stage: tests. What was promised to whom: every transfer of a schedule, every byte of memory it
// may touch, and the checks of P1 (fenced) at every touch. What an end must look like is in
// verdict.h. Sees both ends of everything, as no process can. Owned by World; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "simulator/tracked.h"

namespace tent::sim {

struct World;

class Ledger {
 public:
  explicit Ledger(World& world) : world_(world) {}

  // ---- what the workload tells ---------------------------------------------------------------
  Tracked& add(Tracked tracked);  // before it is submitted
  Tracked& at(std::uint32_t number) { return all_[number]; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(all_.size()); }
  std::uint32_t live() const { return live_; }
  // The owner took these units back: what touches them may fail, and must not touch them any more.
  void withdraw(std::uint32_t owner, std::uint32_t exported,
                const std::vector<std::uint32_t>* units);
  // Memory that a reader on this host was still copying, and no longer does.
  void release_withdrawn(std::uint32_t owner, std::uint32_t exported);
  std::uint32_t waiting_withdrawn(std::uint32_t owner, std::uint32_t exported) const;

  // ---- what the processes tell ---------------------------------------------------------------
  void ended(std::uint32_t process, const Report& report);
  void noted(std::uint32_t process, const Notification& note);
  void session_lost(std::uint32_t pairing, int end);
  void process_died(std::uint32_t process);

  // ---- what the carrier asks before it touches memory ----------------------------------------
  // An answer to a read: `flow` of the process is the reader's transfer `request`.
  void learn_answer(std::uint32_t pairing, int end, TransferId flow, TransferId request);
  bool may_land(std::uint32_t pairing, int sender, TransferId flow, std::uint64_t offset,
                std::uint64_t length, const Pieces& pieces);
  bool may_read(std::uint32_t process, TransferId flow, std::uint64_t offset, std::uint64_t length,
                const Pieces& pieces);

  // All messages' halves with this tag.
  const std::vector<std::uint32_t>& with_tag(std::uint64_t tag) const { return by_tag_[tag]; }
  void fail(const Tracked& tracked, const std::string& why);

 private:
  using Key = std::uint64_t;
  static Key key(std::uint32_t process, std::uint32_t generation, std::uint64_t id);
  Tracked* find(std::uint32_t process, TransferId id);
  Tracked* flow(std::uint32_t process, std::uint32_t generation, TransferId id);
  Tracked* learn_flow(std::uint32_t process, TransferId id, const Pieces& source);
  Tracked* bind(Tracked& send, std::uint32_t receiver, const Pieces& pieces);
  void close_account(Tracked& tracked);
  void release_local(Tracked& tracked);
  void release_remote(Tracked& tracked);

  World& world_;
  std::vector<Tracked> all_;
  std::uint32_t live_ = 0;
  std::unordered_map<Key, std::uint32_t> numbers_;  // by transfer
  std::unordered_map<Key, std::uint32_t> flows_;    // by flow; learned when it is first seen
  std::vector<std::vector<std::uint32_t>> by_tag_;
  Pieces expected_;
};

std::string describe(const Tracked& tracked);

}  // namespace tent::sim
