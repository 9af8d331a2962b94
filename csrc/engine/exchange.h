// Stage: engine. Where the pure Node meets the world: it carries the Node's wishes to the
// transports, what the transports bring to the Node, and ends to whoever waits. All under the
// engine lock.
//
// The rule of re-entry. Transports call the Receiver from inside poll() and send(); that may call
// the Node. The Node calls the Outbox from inside its own calls; that must never call the Node
// again. So every Outbox call but close() and reaches() only notes its wish, and settle() carries
// the wishes out when no Node and no poll() is on the stack. close() cannot wait: nothing may be
// received after it; it touches the transport alone. send() of a transport may call source(), which
// is const, and down(), which is noted too. Continuations run in settle(), so they may submit and
// cancel.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/node.h"
#include "device/stage.h"
#include "engine/control_events.h"
#include "engine/engine_settings.h"
#include "engine/note_bells.h"
#include "engine/operations.h"
#include "engine/rails.h"
#include "engine/trace.h"
#include "engine/transfers.h"
#include "transports/cma.h"
#include "transports/cuda_ipc.h"
#include "transports/doorbell.h"
#include "transports/rdma.h"
#include "transports/shm.h"
#include "transports/tcp.h"

namespace tent {

class Exchange final : public Transfers, private Outbox, private Receiver {
 public:
  // `wait_set`: the epoll descriptor that the transports join.
  Exchange(const EngineSettings& settings, int wait_set, ControlEvents& events);
  ~Exchange() override;

  // Moves bytes both ways and lets time pass; true when anything moved, or a GPU is about to be
  // done. Ends with settle().
  bool poll(TimeNs now);
  // Carries out all that was noted, until nothing is left. After every use of node().
  void settle();
  // The Node. What is done to it takes effect with the next settle().
  Node& node() {
    stir();
    return node_;
  }
  // Somebody is about to sleep in the epoll set: whoever has work for us wakes it up. False: there
  // is some already.
  bool prepare_sleep();
  void woke();  // nobody sleeps there any more
  // When poll() must be called at the latest, whatever the transports bring.
  TimeNs due() const { return due_; }
  // When anything was last asked of it or brought to it.
  TimeNs busy_at() const { return busy_at_; }

  // Takes the descriptors over, also when it fails.
  Status connect(PeerId peer, const LinkInfo& info, const Connection& connection);
  void disconnect(LinkId link, const Status& why);
  Status share(const Region& region);
  // As rdma.open(). Where the device has as many links as it may, one that is idle makes room.
  Status open_rdma(LinkId link, const RdmaPort& port, RdmaEndpoint& out);
  std::vector<int> descriptors() const;  // of the links that are up

  // Throws std::runtime_error when the GPU that it names cannot be used.
  OperationRef start(Request request);
  // Makes transfers from and to the device's memory possible; takes some milliseconds at first.
  Status open_device(Device device);
  // Whether work can go after that of a stream: not where it is being captured.
  Status why_not_after(Device device, std::uint64_t stream);
  // Whether bytes of the segment are still being copied from or to a GPU.
  bool copying(SegmentId segment) const;
  // Waits until no copy goes on, bounded, and gives all of the GPUs back. No link may be up.
  void end_copies();
  std::map<Device, DeviceCopies::Counts> gpus() const;  // that are in use
  void watch(const OperationRef& operation, Watch watch);

  // Transfers: what collectives use.
  TimeNs now() const override;
  TransferId send(PeerId peer, std::uint64_t context, std::uint64_t tag, const Memory& memory,
                  TimeNs expires, Continuation* then) override;
  TransferId recv(PeerId peer, std::uint64_t context, std::uint64_t tag, const Memory& memory,
                  TimeNs expires, Continuation* then) override;
  void after(Device device, std::uint64_t stream, Continuation* then) override;
  void cancel(TransferId id) override;
  void remind(TimeNs when, std::function<void()> then) override;

  Doorbell doorbell;
  RdmaTransport rdma;
  Operations operations;
  NoteBells bells;
  Rails rails;
  Trace<TracedSlice> trace;
  Trace<TracedCopy> copy_trace;

 private:
  struct Port {  // a link that is up
    PeerId peer = 0;
    RailKind kind = RailKind::Tcp;
    Transport* transport = nullptr;
    RailRef rail;
    std::vector<int> fds;  // the transport owns them
    bool posted = false;   // something that was not sent yet
  };
  struct Down {
    LinkId link;
    Status why;
    bool rested = false;
  };

  // Outbox
  void post(LinkId link, Frame frame) override;
  void close(LinkId link, const Status& why) override;
  void rest(LinkId link) override;
  void done(Report report) override;
  void dial(PeerId peer, RailKinds rails) override;
  void peer_lost(PeerId peer, const Status& why) override;
  void noted(SegmentId segment) override;
  void traced(const SliceEvent& event) override;
  bool reaches(LinkId link, const Layout& source, Device landing, RailKinds allowed) override;
  std::string never_reaches(LinkId link, const Layout& source, Device landing) override;
  bool placing(LinkId link, TransferId flow) override;
  bool behind(LinkId link) override;
  bool quiet(PeerId peer) override;
  void place(PeerId peer, TransferId flow, const Layout& to, const Body& bytes) override;
  bool copying_in(PeerId peer, TransferId flow) const override;
  // Receiver
  bool frame(LinkId link, const FrameHeader& header, std::span<const std::uint8_t> body) override;
  bool slice(LinkId link, const FrameHeader& header) override;
  bool landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
               Pieces& out) override;
  bool landing_of_device(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
                         Pieces& out) override;
  bool landed(LinkId link, const FrameHeader& header) override;
  bool source(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
              Pieces& out) override;
  void down(LinkId link, const Status& why) override;
  void rested(LinkId link) override { downs_.push_back({link, {}, true}); }

  Port* port(LinkId link);
  std::size_t& ports_of(RailKind kind);
  bool spared(LinkId link, const Port& to, RailKinds allowed) const;
  void hold(const Request& request);
  Transport* transport_for(RailKind kind);
  void forget(LinkId link, const std::string& why, bool rested = false);
  bool malformed(LinkId link);
  void send_out();
  void take_down();
  void finish_ended();
  void go_on();
  RailRef rail_of(LinkId link);  // of a link that is up or was so lately
  TransferId launch(Request request, const Memory& memory, Continuation* then);
  void stir() { stirred_ = due_soon_ = true; }
  bool poll_devices();
  bool poll_cuda_ipc();
  static Reach reach_of(const Transport& transport, LinkId link, const Layout& source);
  bool carries(LinkId link, const Layout& source, Device landing);
  bool by_cuda_ipc(LinkId link, const Port& to, const Layout& source, Device landing);
  void wish_for_cuda_ipc(PeerId peer);
  bool reads_gpu(LinkId link, const Port& to, const FrameHeader& header);
  void look_at_pairs();
  void order(Request& request);
  void let_time_pass(TimeNs now);

  ControlEvents& events_;
  TcpTransport tcp_;
  ShmTransport shm_;
  CmaTransport cma_;
  Node node_;
  const int wait_set_;
  std::unique_ptr<DeviceStage> devices_;  // null: no memory of a GPU was ever named
  const EngineSettings settings_;
  const bool checksum_;
  CudaIpcTransport cuda_ipc_;          // its links use what is in devices_
  bool asleep_ = false;                // somebody may be, in the epoll set
  std::vector<std::uint64_t> pinned_;  // page-locked blocks that RDMA devices may touch
  bool cuda_ipc_said_ = false;
  std::map<PeerId, TimeNs> cuda_ipc_wishes_;  // when it may be wished for again
  TimeNs freed_look_ = 0;                     // 0: nothing of ours is open elsewhere

  std::unordered_map<LinkId, Port> ports_;
  std::vector<std::pair<PeerId, std::function<bool()>>> copying_peers_;  // over closed links
  std::size_t tcp_ports_ = 0, local_ports_ = 0, rdma_ports_ = 0;
  unsigned tcp_quiet_ = 0;  // polls since TCP last moved anything
  std::deque<std::pair<LinkId, RailRef>> past_;

  // Noted, for settle().
  bool stirred_ = false;   // the Node may have something to send
  bool due_soon_ = false;  // and wants to be asked for the time again
  std::vector<std::pair<LinkId, Frame>> outgoing_;
  std::vector<LinkId> posted_;
  std::vector<Down> downs_;
  std::vector<Report> ended_;
  std::vector<Report> copying_;  // ended, but a GPU still copies their bytes
  std::vector<std::pair<Continuation*, Status>> reached_;  // streams did what was waited for

  TimeNs due_ = 0, busy_at_ = 0;
  TimeNs remind_at_ = kNever;
  std::function<void()> reminder_;
};

}  // namespace tent
