// Stage: collectives. Which ranks still answer: see the header.
#include "collectives/roll_call.h"

#include <utility>

namespace tent {

RollCall::RollCall(Transfers& transfers, const RankMap& ranks, std::uint64_t notices_context,
                   Gone gone)
    : transfers_(transfers), ranks_(ranks), context_(notices_context), gone_(std::move(gone)) {}

void RollCall::start() {
  started_ = transfers_.now();
  const TimeNs expires = started_ + kPatience;
  for (std::int32_t rank = 0; rank < ranks_.size; ++rank) {
    if (rank == ranks_.rank) continue;
    const TransferId id = transfers_.send(
        ranks_.peers[std::size_t(rank)], context_, 0,
        {reinterpret_cast<std::uint64_t>(&question_), sizeof question_}, expires, this);
    asked_.emplace(id, rank);
    answered_.emplace(rank, false);
  }
}

void RollCall::when_due(Tell tell) {
  waiting_.push_back(std::move(tell));
  if (asked_.empty() || transfers_.now() >= due()) end();
}

void RollCall::end() {
  const std::string found = words();
  for (const Tell& tell : std::exchange(waiting_, {})) tell(found);
}

void RollCall::ended(TransferId id, const Report& report) {
  const auto found = asked_.find(id);
  answered_[found->second] = report.status.ok();
  asked_.erase(found);
  if (!asked_.empty()) return;
  end();
  const Gone gone = gone_;  // it may be the last that happens to this
  gone();
}

std::string RollCall::words() const {
  std::string silent;
  std::size_t count = 0;
  for (const auto& [rank, is_here] : answered_) {
    if (is_here) continue;
    silent += (count++ == 0 ? "" : ", ") + std::to_string(rank);
  }
  if (count == 0) return "; the engines of all ranks answer";
  return (count == 1 ? "; no answer from rank " : "; no answer from ranks ") + silent;
}

}  // namespace tent
