// Stage: collectives. Which ranks of a group still answer, asked a moment before a collective times
// out: a stopped rank is only silent, and most of the others wait for ranks that are well. Made by
// Collectives; runs on Transfers, under the engine lock. What always holds: whoever waits is told
// once, at the latest when its transfers have ended; then `gone` comes once.
// Engines answer, not their programs: a rank that is only late is not named.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "collectives/notices.h"
#include "engine/transfers.h"

namespace tent {

class RollCall final : private Continuation {
 public:
  // In a larger group, most ranks have no link to each other yet, and would be named wrongly.
  static constexpr std::int32_t kRanksMax = 64;
  static constexpr TimeNs kPatience = 1 * kSecond;  // a link may have to be made first

  using Tell = std::function<void(const std::string& found)>;  // words for the error
  using Gone = std::function<void()>;                          // may destroy this
  RollCall(Transfers& transfers, const RankMap& ranks, std::uint64_t notices_context, Gone gone);
  void start();
  TimeNs started() const { return started_; }
  // When everybody who answers has done so: no answer by then is one, too. kNever: nobody waits.
  TimeNs due() const { return waiting_.empty() ? kNever : started_ + kPatience; }
  void when_due(Tell tell);  // maybe at once
  void end();                // tells what is known by now

 private:
  void ended(TransferId id, const Report& report) override;
  std::string words() const;

  Transfers& transfers_;
  const RankMap& ranks_;
  const std::uint64_t context_;
  const Gone gone_;
  const Notice question_;
  TimeNs started_ = 0;
  std::vector<Tell> waiting_;
  std::map<TransferId, std::int32_t> asked_;  // those that may still answer
  std::map<std::int32_t, bool> answered_;     // by rank
};

}  // namespace tent
