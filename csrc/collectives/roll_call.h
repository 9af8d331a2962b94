// Stage: collectives. Which ranks of a group still answer, asked when a collective has timed out. A
// stopped rank is only silent, and most of the others wait for ranks that are well. Made by
// Collectives; runs on Transfers, under the engine lock. What always holds: `end` is called once,
// within the patience and the time that a cancel takes; then `gone` once, when no transfer is left.
// Engines answer, not their programs: a rank that is only late is not named.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "collectives/notices.h"
#include "engine/transfers.h"

namespace tent {

class RollCall final : private Continuation {
 public:
  // In a larger group, most ranks have no link to each other yet, and would be named wrongly.
  static constexpr std::int32_t kRanksMax = 64;

  using End = std::function<void(const std::string& found)>;  // words for the error
  using Gone = std::function<void()>;                         // may destroy this
  RollCall(Transfers& transfers, const RankMap& ranks, std::uint64_t notices_context, End end,
           Gone gone);
  void start();
  void end();  // with what is known by now; a no-op when it has ended

 private:
  void ended(TransferId id, const Report& report) override;
  std::string words() const;

  Transfers& transfers_;
  const RankMap& ranks_;
  const std::uint64_t context_;
  End end_;  // null: called
  Gone gone_;
  const Notice question_;
  std::map<TransferId, std::int32_t> asked_;  // those that may still answer
  std::map<std::int32_t, bool> answered_;     // by rank
};

}  // namespace tent
