// Stage: collectives. How the ranks of one group tell each other that a rank is lost, or that they
// abort. The rank that waits for the dead one finds out first; the others may be waiting for ranks
// that are well but will not go on. Owned by the group; runs on Transfers, under the engine lock.
// What always holds: at most one receive is open, and one is, from listen() to close().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "engine/transfers.h"

namespace tent {

struct Notice {
  std::int32_t lost_rank = -1;  // none: a question of a RollCall, which the engine has answered
  char text[252] = {};
};
static_assert(sizeof(Notice) == 256);

class Notices final : private Continuation {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    // `from_itself`: it lives, but has aborted.
    virtual void heard(std::int32_t lost_rank, const std::string& why, bool from_itself) = 0;
    virtual void quiet() = 0;  // closed, and no transfer is left; may destroy this
  };

  Notices(Transfers& transfers, Owner& owner, const RankMap& ranks, std::uint64_t context)
      : transfers_(transfers), owner_(owner), ranks_(ranks), context_(context) {}

  void listen();  // a no-op while it listens, and when closed
  void tell_all(std::int32_t lost_rank, const std::string& why);
  void close();  // `quiet` follows, maybe at once

 private:
  void ended(TransferId id, const Report& report) override;

  Transfers& transfers_;
  Owner& owner_;
  const RankMap& ranks_;
  const std::uint64_t context_;
  Notice incoming_;
  TransferId listening_ = 0;
  bool is_listening_ = false, closed_ = false;
  std::unordered_map<TransferId, std::shared_ptr<Notice>> outgoing_;
};

}  // namespace tent
