// Stage: tests. A transport with a scripted Receiver behind it, for Python to drive: what every
// transport must keep is written down once, in tests/test_transports.py.
// Called by one thread per Side. Built by tests/contract_module.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "device/copies.h"
#include "transports/cma.h"
#include "transports/cuda_ipc.h"
#include "transports/doorbell.h"
#include "transports/local_channel.h"
#include "transports/rdma.h"
#include "transports/shm.h"
#include "transports/tcp.h"

namespace py = pybind11;
using namespace tent;

namespace {

using Clock = std::chrono::steady_clock;

struct Event {  // what the Receiver was told
  std::string what;
  LinkId link = 0;
  FrameHeader header;
  std::string text;  // body of a frame, cause of a down
  int code = 0;
};

struct Line {  // a flow's memory
  Pieces pieces;
  std::uint64_t end = UINT64_MAX;  // bytes from here on are refused
};

bool cut(const std::map<TransferId, Line>& lines, TransferId flow, std::uint64_t offset,
         std::uint64_t length, Pieces& out) {
  const auto found = lines.find(flow);
  if (found == lines.end() || offset + length > found->second.end) return false;
  for (const Piece& piece : found->second.pieces) {
    if (offset >= piece.bytes) {
      offset -= piece.bytes;
      continue;
    }
    const std::uint64_t taken = std::min(length, piece.bytes - offset);
    if (taken == 0) break;
    out.push_back({piece.address + offset, taken});
    length -= taken;
    offset = 0;
  }
  return length == 0;
}

// "rdma:FILE" opens the libibverbs FILE.
std::unique_ptr<Transport> make_transport(const std::string& kind, std::uint64_t poll_bytes,
                                          int wait_set, Doorbell& bell) {
  if (kind.starts_with("rdma:")) {
    return std::make_unique<RdmaTransport>(wait_set, kind.substr(5), poll_bytes);
  }
  if (kind == "tcp") return std::make_unique<TcpTransport>(wait_set, poll_bytes);
  if (kind == "shm") return std::make_unique<ShmTransport>(wait_set, bell, poll_bytes);
  if (kind == "cma") return std::make_unique<CmaTransport>(wait_set, bell, poll_bytes);
  if (kind.starts_with("cuda_ipc:")) {
    return std::make_unique<CudaIpcTransport>(wait_set, bell, poll_bytes);
  }
  throw std::invalid_argument("no such transport: " + kind);
}

// What the engine has for copies between GPUs: both of the driver "cuda_ipc:FILE" are in use.
class GpuCopies final : public GpuCopier {
 public:
  explicit GpuCopies(const std::string& kind) {
    if (!kind.starts_with("cuda_ipc:")) return;
    std::string why;
    if (Cuda::load(kind.substr(9), why) == nullptr) throw std::runtime_error(why);
    for (const Device device : {0, 1}) {
      if (const Status status = copies_.open(device); !status.ok()) {
        throw std::runtime_error(status.text);
      }
    }
  }
  const Gpu* gpu(Device device) const override { return copies_.gpu(device); }
  std::vector<Device> gpus() const override { return copies_.devices(); }
  GpuCopyId copy(LinkId link, TransferId, Device device, const Pieces& from, const Pieces& to,
                 bool mapped) override {
    const CopyId id = copies_.across(device, from, to, mapped);
    links_[id] = link;
    return id;
  }
  void finish(GpuCopyId id) override { copies_.finish(id); }
  bool poll(CudaIpcTransport& transport) {
    std::vector<DeviceCopies::Ended> ended;
    copies_.poll(ended);
    for (const auto& [id, status] : ended) {
      transport.copied(links_.at(id), id, status);
      links_.erase(id);
    }
    return !ended.empty();
  }
  std::size_t running() const { return copies_.running(); }

 private:
  Trace<TracedCopy> trace_;
  DeviceCopies copies_{0, trace_};
  std::map<CopyId, LinkId> links_;
};

// One end: an epoll set, a doorbell, a transport, and what its Receiver says and hears.
class Side final : public Receiver {
 public:
  Side(const std::string& kind, std::uint64_t poll_bytes)
      : copier_(kind),
        wait_set_(::epoll_create1(EPOLL_CLOEXEC)),
        bell_(wait_set_.get()),
        transport_(make_transport(kind, poll_bytes, wait_set_.get(), bell_)),
        rdma_(dynamic_cast<RdmaTransport*>(transport_.get())),
        cuda_ipc_(dynamic_cast<CudaIpcTransport*>(transport_.get())) {
    if (cuda_ipc_ != nullptr) cuda_ipc_->attach(&copier_);
  }

  // ---- the script ------------------------------------------------------------------------------
  void source_line(TransferId flow, const std::vector<std::pair<std::uint64_t, std::uint64_t>>& p) {
    sources_[flow] = line_of(p);
  }
  void landing_line(TransferId flow,
                    const std::vector<std::pair<std::uint64_t, std::uint64_t>>& p) {
    landings_[flow] = line_of(p);
  }
  void end_source(TransferId flow, std::uint64_t end) { sources_.at(flow).end = end; }
  void end_landing(TransferId flow, std::uint64_t end) { landings_.at(flow).end = end; }
  void close_in(const std::string& call, int count) {
    close_in_ = call;
    close_count_ = count;
  }
  void refuse(const std::string& call) { refuse_ = call; }
  void reply(LinkId link, const std::string& header, const std::string& body, int times) {
    reply_link_ = link;
    reply_ = frame_of(header, body);
    replies_ = times;
  }

  // ---- the transport ---------------------------------------------------------------------------
  std::string connect(LinkId link, const std::vector<int>& fds, bool dialed, int pid) {
    return transport_->connect({link, fds, dialed, pid}).text;
  }
  void post(LinkId link, const std::string& header, const std::string& body) {
    transport_->post(link, frame_of(header, body));
    transport_->send(link, *this);
  }
  bool poll() {
    if (transport_ == nullptr) return false;
    const bool copied = cuda_ipc_ != nullptr && copier_.poll(*cuda_ipc_);
    return transport_->poll(*this) || copied;
  }
  std::size_t copying() const { return copier_.running(); }
  std::string refuses(LinkId link, int source, int landing) const {
    return cuda_ipc_->refuses(link, Device(source), Device(landing));
  }
  bool reads(LinkId link, int source, int landing) const {
    return cuda_ipc_->reads(link, Device(source), Device(landing));
  }
  void close(LinkId link) { transport_->close(link); }
  int reach(LinkId link, const std::vector<std::pair<std::uint64_t, std::uint64_t>>& p) {
    return int(transport_->reach(link, line_of(p).pieces));
  }
  std::string register_region(std::uint64_t id, std::uint64_t address, std::uint64_t bytes,
                              int fd) {
    return transport_->register_region({id, address, bytes, fd}).text;
  }
  // RDMA alone.
  py::bytes rdma_open(LinkId link, const std::string& device) {
    RdmaEndpoint endpoint;
    const Status status = rdma_->open(link, {device, 1, 0}, endpoint);
    if (!status.ok()) throw std::runtime_error(status.text);
    return py::bytes(reinterpret_cast<const char*>(&endpoint), sizeof endpoint);
  }
  std::string rdma_join(LinkId link, const std::string& endpoint, bool dialed) {
    RdmaEndpoint peer;
    if (endpoint.size() != sizeof peer) return "not an endpoint";
    std::memcpy(&peer, endpoint.data(), sizeof peer);
    std::shared_ptr<RdmaJoining> joining;
    Status status = rdma_->join(link, peer, dialed, joining);
    if (status.ok()) status = joining->run();
    return (status.ok() ? rdma_->joined(link, dialed) : status).text;
  }
  py::object rdma_greeted(LinkId link) {
    Status why;
    const bool came = rdma_->greeted(link, why);
    return why.ok() ? py::object(py::bool_(came)) : py::object(py::str(why.text));
  }
  void hold(std::uint64_t owner, const std::vector<std::pair<std::uint64_t, std::uint64_t>>& p) {
    rdma_->memory.hold({MemoryOwner::Kind::Segment, owner}, line_of(p).pieces);
  }
  void drop(std::uint64_t owner) { rdma_->memory.drop({MemoryOwner::Kind::Segment, owner}); }
  std::string complaint() { return rdma_->memory.take_complaint(); }
  bool behind(LinkId link) const { return transport_->behind(link); }
  bool placing(LinkId link, TransferId flow) { return rdma_->placing(link, flow); }

  // As the engine sleeps: 0 a link was ready before, 1 woken up, 2 the time passed.
  int sleep(int timeout_ms) {
    if ((rdma_ != nullptr && !rdma_->prepare_sleep()) || !bell_.prepare_sleep()) return 0;
    epoll_event events[8];
    int count;
    {
      py::gil_scoped_release released;
      count = ::epoll_wait(wait_set_.get(), events, 8, timeout_ms);
    }
    bell_.woke();
    return count > 0 ? 1 : 2;
  }
  void hang_up() {
    transport_.reset();
    rdma_ = nullptr;
    cuda_ipc_ = nullptr;
  }

  std::vector<Event> take_events() { return std::exchange(events_, {}); }
  std::size_t events() const { return events_.size(); }
  std::uint64_t landing_calls() const { return landing_calls_; }
  std::uint64_t last_landing() const { return last_landing_; }  // the offset that it asked for

  // ---- Receiver --------------------------------------------------------------------------------
  bool frame(LinkId link, const FrameHeader& header, std::span<const std::uint8_t> body) override {
    events_.push_back({"frame", link, header, std::string(body.begin(), body.end())});
    if (replies_ > 0) {
      --replies_;
      transport_->post(reply_link_, reply_);
      transport_->send(reply_link_, *this);
    }
    return answer("frame", link);
  }
  bool slice(LinkId link, const FrameHeader& header) override {
    events_.push_back({"slice", link, header, ""});
    return answer("slice", link);
  }
  bool landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
               Pieces& out) override {
    ++landing_calls_;
    last_landing_ = offset;
    const bool known = cut(landings_, flow, offset, length, out);
    answer("landing", link);
    return known;
  }
  bool landed(LinkId link, const FrameHeader& header) override {
    events_.push_back({"landed", link, header, ""});
    return answer("landed", link);
  }
  bool source(LinkId, TransferId flow, std::uint64_t offset, std::uint64_t length,
              Pieces& out) override {
    return cut(sources_, flow, offset, length, out);
  }
  void down(LinkId link, const Status& why) override {
    events_.push_back({"down", link, {}, why.text, int(why.code)});
  }

 private:
  static Line line_of(const std::vector<std::pair<std::uint64_t, std::uint64_t>>& pieces) {
    Line line;
    for (const auto& [address, bytes] : pieces) line.pieces.push_back({address, bytes});
    return line;
  }
  static Frame frame_of(const std::string& header, const std::string& body) {
    if (header.size() != sizeof(FrameHeader)) throw std::invalid_argument("header: 64 bytes");
    Frame frame;
    std::memcpy(&frame.header, header.data(), sizeof frame.header);
    if (!body.empty()) frame.body = std::make_shared<Body>(body.begin(), body.end());
    return frame;
  }
  bool answer(const std::string& call, LinkId link) {
    if (call == close_in_ && --close_count_ == 0) transport_->close(link);
    return call != refuse_;
  }

  GpuCopies copier_;  // outlives the transport
  Descriptor wait_set_;
  Doorbell bell_;
  std::map<TransferId, Line> sources_, landings_;
  std::vector<Event> events_;
  std::string close_in_, refuse_;
  int close_count_ = 0, replies_ = 0;
  std::uint64_t landing_calls_ = 0, last_landing_ = 0;
  LinkId reply_link_ = 0;
  Frame reply_;
  std::unique_ptr<Transport> transport_;
  RdmaTransport* rdma_;         // the same, where it is one
  CudaIpcTransport* cuda_ipc_;  // likewise
};

// Polls all sides until the first has heard of `events` things. False when the time passed.
bool drive(const std::vector<Side*>& sides, std::size_t events, double timeout_s) {
  const auto end = Clock::now() + std::chrono::duration<double>(timeout_s);
  while (sides.front()->events() < events) {
    bool moved = false;
    for (Side* side : sides) moved |= side->poll();
    if (!moved && Clock::now() > end) return false;
  }
  return true;
}

// Polls all sides until nothing has moved for so long that nothing can be under way any more: the
// kernel hands over what goes through the loopback interface late when all processors are busy.
void settle(const std::vector<Side*>& sides) {
  constexpr auto kQuiet = std::chrono::milliseconds(30);
  auto moved_at = Clock::now();
  while (Clock::now() - moved_at < kQuiet) {
    for (Side* side : sides) {
      if (side->poll()) moved_at = Clock::now();
    }
  }
}

py::object attribute(const Event& event, const std::string& name) {
  if (name == "kind") return py::int_(int(event.header.kind));
  if (name == "sequence") return py::int_(event.header.sequence);
  if (name == "flow") return py::int_(event.header.flow);
  if (name == "offset") return py::int_(event.header.offset);
  if (name == "body_bytes") return py::int_(event.header.body_bytes);
  throw py::attribute_error(name);
}

}  // namespace

PYBIND11_MODULE(transport_contract, m) {
  py::class_<Event>(m, "Event")
      .def_readonly("what", &Event::what)
      .def_readonly("link", &Event::link)
      .def_readonly("code", &Event::code)
      .def_property_readonly("text", [](const Event& e) { return e.text; })
      .def_property_readonly("body", [](const Event& e) { return py::bytes(e.text); })
      .def("__getattr__", &attribute);
  py::class_<Side>(m, "Side")
      .def(py::init<const std::string&, std::uint64_t>(), py::arg("kind"),
           py::arg("poll_bytes") = Transport::kPollBytes)
      .def("source_line", &Side::source_line)
      .def("landing_line", &Side::landing_line)
      .def("end_source", &Side::end_source)
      .def("end_landing", &Side::end_landing)
      .def("close_in", &Side::close_in)
      .def("refuse", &Side::refuse)
      .def("reply", &Side::reply)
      .def("connect", &Side::connect)
      .def("post", &Side::post)
      .def("poll", &Side::poll)
      .def("close", &Side::close)
      .def("reach", &Side::reach)
      .def("register_region", &Side::register_region)
      .def("rdma_open", &Side::rdma_open)
      .def("rdma_join", &Side::rdma_join)
      .def("rdma_greeted", &Side::rdma_greeted)
      .def("hold", &Side::hold)
      .def("drop", &Side::drop)
      .def("complaint", &Side::complaint)
      .def("behind", &Side::behind)
      .def("placing", &Side::placing)
      .def("refuses", &Side::refuses)
      .def("reads", &Side::reads)
      .def_property_readonly("copying", &Side::copying)
      .def("sleep", &Side::sleep)
      .def("hang_up", &Side::hang_up)
      .def("take_events", &Side::take_events)
      .def_property_readonly("events", &Side::events)
      .def_property_readonly("landing_calls", &Side::landing_calls)
      .def_property_readonly("last_landing", &Side::last_landing);
  m.def("drive", &drive);
  m.def("settle", &settle);
  m.def("probe_cma", &probe_cma);
  m.def("open_local_channel", [] {
    std::vector<int> ours, theirs;
    const Status status = open_local_channel(ours, theirs);
    if (!status.ok()) throw std::runtime_error(status.text);
    return std::make_pair(ours, theirs);
  });
}
