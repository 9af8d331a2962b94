// Stage: transport. RDMA rails: a queue pair per link, frames in messages over it, and the bytes of
// slices fetched by the owner of the landing place with RDMA reads.
// Called by the thread that holds the engine lock; nothing blocks.
// What always holds: no library is opened and no device is touched before the first endpoint is
// asked for; a read under way is the only thing that touches memory outside of calls, placing()
// knows of it, and close() ends it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "transports/link_table.h"
#include "transports/rdma/link.h"
#include "transports/transport.h"

namespace tent {

class RdmaTransport final : public Transport {
 public:
  // `wait_set` is the engine's epoll descriptor. `library`: the libibverbs to open, "" for the
  // system's. Throws std::system_error when the process has no descriptors left.
  RdmaTransport(int wait_set, std::string library, std::uint64_t poll_bytes = kPollBytes);
  ~RdmaTransport() override;

  // ---- before a link is up: what the control plane does while it shakes hands ------------------
  // Makes our end of a link. Close() drops it again.
  Status open(LinkId link, const RdmaPort& port, RdmaEndpoint& out);
  // Joins it with the peer's end, in three steps, of which the second, RdmaJoining::run(), needs no
  // lock. Who has `dialed` sends the first greeting, the other one answers.
  Status join(LinkId link, const RdmaEndpoint& peer, bool dialed,
              std::shared_ptr<RdmaJoining>& out);
  Status joined(LinkId link, bool dialed);
  // Whether the peer's greeting has come: then bytes cross both ways. False with `why` set: never.
  bool greeted(LinkId link, Status& why);

  Reach reach(LinkId link, const Pieces& memory) const override;
  Status register_region(const Region& region) override;
  Status connect(const Connection& connection) override;  // fds: [] or [control connection]
  void post(LinkId link, Frame frame) override;
  void send(LinkId link, Receiver& receiver) override;
  bool poll(Receiver& receiver) override;
  void close(LinkId link) override;
  void close_all();  // those too that nobody was told of, because they shake hands

  // Closes a link that carries nothing, and tells the peer that this is why.
  void rest(LinkId link);
  bool full(const std::string& device) const;               // it has as many links as it may
  std::vector<LinkId> links_on(const std::string& device);  // that are up

  // Whether the peer can read all of this memory, or our device can write it.
  bool names(LinkId link, const Pieces& memory) const;
  bool places(LinkId link, const Pieces& memory) const;
  // The link's device moves this GPU's memory by itself. False as well while that is tried.
  bool moves(LinkId link, Device gpu);
  // Reads of this flow's bytes are under way.
  bool placing(LinkId link, TransferId flow) const;
  // Before the wait on the epoll set: the next completion will end it. False: there is one already.
  bool prepare_sleep();
  bool active() const { return !links_.empty(); }

  RdmaMemory memory;
  std::uint32_t links_max = UINT32_MAX;  // of one device

 private:
  RdmaDevice* device(const std::string& name, Status& why);
  void serve(RdmaLink& link, Receiver& receiver);
  void end(RdmaLink& link, Receiver& receiver);
  void look_around(Receiver& receiver);
  void fall_silent();
  void hear(RdmaDevice& device, Receiver& receiver);
  void bring_down(const RdmaDevice& device, int port, const std::string& why, Receiver& receiver);

  const std::string library_;
  const std::uint64_t poll_bytes_;
  Descriptor ready_;  // epoll: completions, device events, control connections
  std::unique_ptr<Verbs> verbs_;
  std::map<std::string, std::unique_ptr<RdmaDevice>> devices_;
  Retirement retirement_;  // ends before the devices, and after the links
  LinkTable<RdmaLink> links_;
  std::vector<RdmaLink*> touched_, again_;
  std::uint32_t polls_ = 0;
  bool look_ = false;
};

}  // namespace tent
