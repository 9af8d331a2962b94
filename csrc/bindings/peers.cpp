// Stage: api. Peers and links, for the control plane: it hands over connected descriptors and hears
// what to dial. Any Python thread; next_events() waits without the GIL.
#include <pybind11/stl.h>
#include <sys/random.h>
#include <unistd.h>

#include <deque>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "engine/clock.h"
#include "transports/cma.h"
#include "transports/local_channel.h"

namespace tent::bindings {
namespace {

RailKind kind_named(const std::string& kind, const std::vector<int>& fds) {
  if (kind == "tcp") return RailKind::Tcp;
  if (kind == "shm") return RailKind::Shm;
  if (kind == "cma") return RailKind::Cma;
  if (kind == "rdma") return RailKind::Rdma;
  if (kind == "cuda_ipc") return RailKind::CudaIpc;
  for (const int fd : fds) ::close(fd);
  throw py::value_error("a rail is tcp, shm, cma, rdma or cuda_ipc, not \"" + kind + "\"");
}

void add_link(Engine& engine, PeerId peer, LinkId link, const std::string& kind,
              const std::string& rail, const std::vector<int>& fds, bool dialed, std::int32_t pid,
              double rate_hint) {
  LinkInfo info;
  info.kind = kind_named(kind, fds);
  info.rail = rail;
  info.rate_hint = rate_hint;
  info.places_by_itself = info.kind == RailKind::Rdma || info.kind == RailKind::CudaIpc;
  const WithoutGil release;
  engine.add_link(peer, info, {.link = link, .fds = fds, .dialed = dialed, .pid = pid});
}

void close_link(Engine& engine, LinkId link, const std::string& reason) {
  under_lock(engine, false,
             [&](Held& held) { held->disconnect(link, {Code::Failed, reason, ""}); });
}

PeerId add_peer(Engine& engine, const std::string& name) {
  const WithoutGil release;
  return engine.add_peer(name);
}

void lose_peer(Engine& engine, PeerId peer, const std::string& reason) {
  under_lock(engine, false, [&](Held& held) {
    held->node().lose_peer(peer, {Code::PeerLost, reason, ""}, now_ns());
  });
}

void no_rails(Engine& engine, PeerId peer, unsigned rails, const std::string& reason) {
  under_lock(engine, false,
             [&](Held& held) { held->node().no_rails(peer, RailKinds(rails), reason, now_ns()); });
}

bool alive(Engine& engine, PeerId peer) {
  return under_lock(engine, true, [&](Held& held) { return held->node().alive(peer); });
}

bool closed(Engine& engine, PeerId peer) {
  return under_lock(engine, true, [&](Held& held) { return held->node().closed(peer); });
}

py::list next_events(Engine& engine, const py::object& timeout) {
  std::deque<ControlEvent> events;
  const bool some = wait_with_signals(deadline_of(timeout), [&](TimeNs until) {
    if (!engine.events().take(until, events)) throw std::runtime_error("the engine is closed");
    return !events.empty();
  });
  py::list out;
  if (!some) return out;
  constexpr const char* kNames[] = {"dial", "down", "rested", "lost", "said"};
  for (const ControlEvent& event : events) {
    out.append(py::make_tuple(kNames[int(event.kind)], event.peer, event.number, event.rail,
                              event.reason));
  }
  return out;
}

// One word per process: whoever can read it at this address may use CMA.
py::tuple probe_word(Engine& engine) {
  engine.check();
  static const std::uint64_t word = [] {
    std::uint64_t value = 0;
    if (getrandom(&value, sizeof value, 0) != sizeof value) value = std::uint64_t(now_ns());
    return value;
  }();
  return py::make_tuple(reinterpret_cast<std::uint64_t>(&word), word);
}

py::tuple open_channel() {
  std::vector<int> ours, theirs;
  const Status status = open_local_channel(ours, theirs);
  if (!status.ok()) throw std::runtime_error("no same-host channel: " + status.text);
  return py::make_tuple(py::cast(ours), py::cast(theirs));
}

std::string probe(std::int32_t pid, std::uint64_t address, std::uint64_t value) {
  const WithoutGil release;
  return probe_cma(pid, address, value);
}

}  // namespace

void bind_peers(py::module_& module, EngineClass& engine) {
  using py::arg;
  engine.def("add_peer", &add_peer, arg("name"))
      .def("lose_peer", &lose_peer, arg("peer"), arg("reason"))
      .def("alive", &alive, arg("peer"))
      .def("closed", &closed, arg("peer"))
      .def("no_rails", &no_rails, arg("peer"), arg("rails"), arg("reason"))
      .def("add_link", &add_link, arg("peer"), arg("link"), arg("kind"), arg("rail"), arg("fds"),
           arg("dialed"), arg("pid"), arg("rate_hint"))
      .def("close_link", &close_link, arg("link"), arg("reason"))
      .def("next_events", &next_events, arg("timeout"))
      .def("probe_word", &probe_word);
  module.def("open_local_channel", &open_channel);
  module.def("probe_cma", &probe, arg("pid"), arg("address"), arg("value"));
  module.def("now_ns", &now_ns);
}

}  // namespace tent::bindings
