// Stage: engine. What the caller asked for and has not yet heard the end of. Every transfer ends
// here exactly once, with a Report. Pure; one thread. Owned by Node.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "core/node.h"

namespace tent {

struct Transfer {
  enum class Stage : std::uint8_t {
    Posted,     // a receive that waits for a match
    Moving,     // with its session
    Cancelling  // waits for the peer to forget it; ends with `ending`
  };
  Request request;
  Report report;
  Stage stage = Stage::Posted;
  TransferId flow = 0;       // on the wire: ours (send, write) or the peer's (receive, read)
  bool accept_owed = false;  // a receive that was matched while it was held
  Body early;                // ... and the bytes that came with the match
  Status ending;
  TimeNs patience = kNever;    // Cancelling: when we stop waiting for the peer's answer
  TimeNs lets_go_by = kNever;  // ... and, once it was cut off, for it to let go of our memory

  void count(const std::string& rail, std::uint64_t bytes);    // a slice went over the rail
  void uncount(const std::string& rail, std::uint64_t bytes);  // ... and was lost with it
};

class TransferTable {
 public:
  explicit TransferTable(Outbox& outbox) : outbox_(outbox) {}

  Transfer& add(Request request, TimeNs now);
  Transfer* find(TransferId id);
  void end(TransferId id, Status status, TimeNs now);
  void wait_until(Transfer& transfer, TimeNs patience);

  // Transfers whose time (expiry or patience) has come.
  std::vector<TransferId> due(TimeNs now);
  TimeNs next_due() const { return times_.empty() ? kNever : times_.begin()->first; }
  std::size_t size() const { return transfers_.size(); }
  std::vector<TransferId> with_peer(PeerId peer) const;

  std::uint64_t done = 0, failed = 0;

 private:
  Outbox& outbox_;
  std::unordered_map<TransferId, Transfer> transfers_;
  std::multimap<TimeNs, TransferId> times_;  // may name transfers that have ended
};

}  // namespace tent
