// Stage: engine. The transfers that somebody started here and that have not ended: who hears of the
// end, and what they will see. Owned by Exchange, under the engine lock; an Operation's report may
// be read by any thread once it is ready(). What always holds: an id is in the registry exactly as
// long as its transfer runs, so the registry is bounded by the outstanding transfers; an ended
// Operation lives as long as its owners want.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/node.h"
#include "engine/histogram.h"
#include "engine/transfers.h"
#include "engine/waitable.h"

namespace tent {

using EndCall = void (*)(void*);

// Whether `on_done` wants the id: at the end, or some milliseconds later unless somebody waited.
enum class Watch : std::uint8_t { No, Late, Soon };

struct Operation : Waitable {
  explicit Operation(TransferId transfer) : id(transfer) {}
  const TransferId id;
  bool urgent = true;  // set before it is shared: whoever waits for it drives, before others
  Report report;       // written once, before ready()
  std::atomic<bool> waited_for{false};               // a wait saw its end
  Watch watch = Watch::No;                           // engine lock
  std::vector<std::pair<EndCall, void*>> end_calls;  // engine lock
};
using OperationRef = std::shared_ptr<Operation>;

// What has to happen for ended operations once the lock is free: no system call is made under it.
struct Aftermath {
  std::vector<std::shared_ptr<Waitable>> sleepers;  // somebody sleeps on these
  std::vector<std::uint64_t> watched;               // ids for `on_done`
  std::vector<std::pair<EndCall, void*>> end_calls;
  bool empty() const { return sleepers.empty() && watched.empty() && end_calls.empty(); }
};

class Operations {
 public:
  OperationRef open(const Request& request);
  void follow(const Request& request, Continuation* then);
  std::size_t outstanding() const { return running_.size(); }
  std::vector<TransferId> ids() const;
  // Sends and receives in a context; of one peer, or of any with kAnyPeer.
  std::vector<TransferId> ids_in(std::uint64_t context, PeerId peer = kAnyPeer) const;

  // The end of a transfer. Wakes nobody: that waits in the aftermath. Calls the continuation.
  void finish(Report report);
  // The end of an operation; also of one that never was a transfer (a collective).
  void finish(const OperationRef& operation, Report report);
  void watch(const OperationRef& operation, Watch watch);
  // Called every few milliseconds after something ended: tells the late watches.
  void tell_late();
  void call_at_end(const OperationRef& operation, EndCall fn, void* context);
  Aftermath& aftermath() { return aftermath_; }
  // From submit to end, by Request::Op.
  const std::array<Histogram, 4>& latencies() const { return latencies_; }

 private:
  struct Running {
    Request::Op kind;
    std::uint64_t context;
    PeerId peer;
    OperationRef operation;
    Continuation* then = nullptr;
  };
  std::unordered_map<TransferId, Running> running_;
  Aftermath aftermath_;
  std::vector<OperationRef> late_;
  std::array<Histogram, 4> latencies_;
};

}  // namespace tent
