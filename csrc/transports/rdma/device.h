// Stage: transport. One RDMA device that an engine has opened: its protection domain, the
// completion queues of all links on it, and the events that it tells of. Engine lock held. Owned by
// RdmaTransport; links hold it by reference and end before it. What always holds: completions are
// told to the link that posted the work, by its seat and turn in the work's number, so that what a
// dead link left behind in a queue reaches nobody.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/types.h"
#include "drivers/verbs.h"
#include "transports/descriptor.h"

namespace tent {

class RdmaLink;

// The number of a piece of work: whose it is (seat, turn), which queue, and its place in that.
struct WorkNumber {
  std::uint16_t seat = 0;
  std::uint16_t turn = 0;  // how often the seat was taken: a reused seat hears nothing old
  bool receive = false;
  std::uint32_t place = 0;  // below 2^31

  std::uint64_t packed() const {
    return std::uint64_t(seat) << 48 | std::uint64_t(turn) << 32 | std::uint64_t(receive) << 31 |
           place;
  }
  static WorkNumber of(std::uint64_t packed) {
    return {std::uint16_t(packed >> 48), std::uint16_t(packed >> 32), (packed >> 31 & 1) != 0,
            std::uint32_t(packed & 0x7fffffff)};
  }
};

struct RdmaLimits {
  std::uint32_t reads_out = 1, reads_in = 1;  // RDMA reads at a time: asked by us, answered by us
  std::uint32_t work_max = 0;                 // per queue
  std::uint32_t links_max = UINT32_MAX;       // queue pairs of the device
};

class RdmaDevice {
 public:
  static constexpr int kBatch = 32;  // completions taken at a time

  // Its event descriptors join `ready`. Null: `why` says what to do.
  static std::unique_ptr<RdmaDevice> open(const Verbs& verbs, const std::string& name, int ready,
                                          Status& why);
  ~RdmaDevice();

  const std::string& name() const { return name_; }
  ibv::Context* context() const { return context_; }
  ibv::Pd* pd() const { return pd_; }
  const RdmaLimits& limits() const { return limits_; }
  std::uint32_t links() const;  // that have a seat and are not closed
  int event_fd() const { return context_->async_fd; }

  // A seat for a link, and room for its completions. Null: no queue can be had; `why` says it.
  ibv::Cq* seat(RdmaLink& link, std::uint16_t& seat, std::uint16_t& turn, Status& why);
  // The link hears nothing any more; its place in the queue stays until its pair is destroyed.
  void stand_up(std::uint16_t seat) { seats_[seat].link = nullptr; }
  void leave(std::uint16_t seat);

  // Takes up to kBatch completions of each queue and gives each to its link's completed(); what
  // drain() has put aside first. True when there was any. `touched` gets the links.
  bool poll(std::vector<RdmaLink*>& touched);
  // Takes completions until the link's drained() or until `patience` has passed; false: it passed.
  // Those of other links are put aside.
  bool drain(RdmaLink& link, TimeNs patience);
  // Asks to be woken by the next completion. False: there are some already.
  bool arm();
  // Takes back that it asked: nobody is there to hear of it.
  void disarm();

 private:
  static constexpr int kLinksPerQueue = 64;
  struct Queue {
    ibv::Cq* cq = nullptr;
    int links = 0;
  };
  struct Seat {
    RdmaLink* link = nullptr;
    bool taken = false;
    std::uint16_t turn = 0;
    std::uint32_t queue = 0;
  };

  RdmaDevice(const Verbs& verbs, std::string name) : verbs_(verbs), name_(std::move(name)) {}
  Status prepare(int ready);
  ibv::Cq* queue_with_room(std::uint32_t& index, Status& why);
  RdmaLink* link_of(const WorkNumber& work) const;
  void tell(const ibv::Wc& wc, std::vector<RdmaLink*>& touched);
  bool take_aside();
  bool take_notices();

  const Verbs& verbs_;
  const std::string name_;
  ibv::Context* context_ = nullptr;
  ibv::Pd* pd_ = nullptr;
  ibv::CompChannel* channel_ = nullptr;
  RdmaLimits limits_;
  std::vector<Queue> queues_;
  std::vector<Seat> seats_;
  std::vector<ibv::Wc> aside_;
  bool armed_ = false;
};

}  // namespace tent
