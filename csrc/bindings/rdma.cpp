// Stage: api. RDMA links while the control plane shakes hands: our end, the peer's, the greetings
// that prove the way between them. After that they are added as links of any kind are.
// Any Python thread.
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "bindings/bindings.h"
#include "engine/clock.h"
#include "transports/rdma/measure.h"

namespace tent::bindings {
namespace {

void check(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.text);
}

py::bytes open(Engine& engine, LinkId link, const std::string& device, std::uint8_t port,
               std::uint8_t gid_index) {
  RdmaEndpoint endpoint;
  check(under_lock(engine, false, [&](Held& held) {
    return held->open_rdma(link, {device, port, gid_index}, endpoint);
  }));
  return py::bytes(reinterpret_cast<const char*>(&endpoint), sizeof endpoint);
}

void join(Engine& engine, LinkId link, const std::string& endpoint, bool dialed) {
  RdmaEndpoint peer;
  if (endpoint.size() != sizeof peer) {
    throw std::runtime_error("the peer's RDMA endpoint has a wrong length: another version?");
  }
  std::memcpy(&peer, endpoint.data(), sizeof peer);
  std::shared_ptr<RdmaJoining> joining;
  check(under_lock(engine, false,
                   [&](Held& held) { return held->rdma.join(link, peer, dialed, joining); }));
  Status status;
  {
    const WithoutGil release;
    status = joining->run();
  }
  check(status);
  check(under_lock(engine, false, [&](Held& held) { return held->rdma.joined(link, dialed); }));
}

bool greeted(Engine& engine, LinkId link) {
  Status why;
  const bool came = under_lock(engine, false, [&](Held& held) {
    held->poll(now_ns());
    return held->rdma.greeted(link, why);
  });
  check(why);
  return came;
}

void drop(Engine& engine, LinkId link) {
  under_lock(engine, false, [&](Held& held) { held->rdma.close(link); });
}

double measure(const std::string& library, const std::string& device, std::uint64_t bytes) {
  double seconds = 0;
  Status status;
  {
    const WithoutGil release;
    status = measure_registration(library, device, bytes, seconds);
  }
  check(status);
  return seconds;
}

void expect(Engine& engine) {
  under_lock(engine, true, [&](Held& held) { held->rdma.memory.wanted = true; });
}

}  // namespace

void bind_rdma(py::module_& module, EngineClass& engine) {
  using py::arg;
  module.def("measure_registration", &measure, arg("library"), arg("device"), arg("bytes"));
  engine.def("rdma_expected", &expect)
      .def("rdma_open", &open, arg("link"), arg("device"), arg("port"), arg("gid_index"))
      .def("rdma_join", &join, arg("link"), arg("endpoint"), arg("dialed"))
      .def("rdma_greeted", &greeted, arg("link"))
      .def("rdma_drop", &drop, arg("link"));
}

}  // namespace tent::bindings
