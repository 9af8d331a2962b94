// Stage: api. The engine's counters, histograms and trace as plain Python values.
// Any Python thread. Everything is copied under the engine lock and made into objects without it.
#include <array>
#include <map>
#include <vector>

#include "bindings/bindings.h"

namespace tent::bindings {
namespace {

constexpr std::array kOpNames{"send", "recv", "write", "read"};
constexpr std::array kKindNames{"shm", "cma", "tcp", "rdma", "cuda_ipc"};

struct Snapshot {
  NodeStats node;
  std::vector<Rail> rails;
  std::array<Histogram, 4> latencies;
  std::map<Device, DeviceCopies::Counts> gpus;
  std::vector<GpuPairs::Pair> pairs;
};

py::dict histogram_of(const Histogram& histogram) {
  py::dict out;
  out["count"] = histogram.count();
  out["sum_s"] = double(histogram.sum()) * 1e-9;
  out["max_s"] = double(histogram.max()) * 1e-9;
  out["p50_s"] = histogram.quantile(0.5);
  out["p90_s"] = histogram.quantile(0.9);
  out["p99_s"] = histogram.quantile(0.99);
  out["p999_s"] = histogram.quantile(0.999);
  py::list buckets;
  for (int index = 0; index < Histogram::kBuckets; ++index) {
    const std::uint64_t count = histogram.count_in(index);
    if (count == 0) continue;
    buckets.append(py::make_tuple(double(Histogram::lowest_us(index + 1)) * 1e-6, count));
  }
  out["buckets"] = buckets;
  return out;
}

py::dict transfers_of(const NodeStats& node) {
  py::dict out;
  out["done"] = node.transfers_done;
  out["failed"] = node.transfers_failed;
  out["outstanding"] = node.outstanding;
  out["retries"] = node.retries;
  out["fences"] = node.fences;
  out["suspects"] = node.suspects;
  out["twins"] = node.twins;
  return out;
}

py::dict rail_of(const Rail& rail) {
  py::dict out;
  out["peer"] = rail.peer;
  out["rail"] = rail.name;
  out["kind"] = kKindNames[std::size_t(rail.kind)];
  out["bytes_sent"] = rail.bytes_sent;
  out["bytes_received"] = rail.bytes_received;
  out["slices_sent"] = rail.slices_sent;
  out["slices_received"] = rail.slices_received;
  out["retries"] = rail.retries;
  out["fences"] = rail.fences;
  out["links_made"] = rail.links_made;
  out["links_lost"] = rail.links_lost;
  out["links_rested"] = rail.links_rested;
  out["up"] = rail.links_made > rail.links_lost + rail.links_rested;
  out["rate_bytes_per_s"] = 0.0;
  out["base_latency_s"] = 0.0;
  out["in_flight_bytes"] = 0;
  out["window_bytes"] = 0;
  return out;
}

void add_estimate(py::dict& rail, const LinkStats& link) {
  rail["rate_bytes_per_s"] = link.rate * 1e9;
  rail["base_latency_s"] = double(link.base_latency) * 1e-9;
  rail["in_flight_bytes"] = link.in_flight;
  rail["window_bytes"] = link.window;
}

py::list rails_of(const Snapshot& snapshot) {
  py::list out;
  std::map<std::pair<PeerId, std::string>, py::dict> by_name;
  for (const Rail& rail : snapshot.rails) {
    py::dict entry = rail_of(rail);
    by_name[{rail.peer, rail.name}] = entry;
    out.append(entry);
  }
  for (const LinkStats& link : snapshot.node.links) {
    const auto found = by_name.find({link.peer, link.info.rail});
    if (found != by_name.end()) add_estimate(found->second, link);
  }
  return out;
}

py::list gpus_of(const Snapshot& snapshot) {
  py::list out;
  for (const auto& [device, counts] : snapshot.gpus) {
    py::dict entry;
    entry["device"] = "cuda:" + std::to_string(device);
    entry["copies"] = counts.calls;
    entry["gathers"] = counts.launches;
    entry["gathers_not"] = counts.why_not;
    py::dict rdma;
    for (const GpuPairs::Pair& pair : snapshot.pairs) {
      if (pair.gpu == device) rdma[pair.port.c_str()] = pair.tried ? pair.why_not : "being tried";
    }
    entry["rdma"] = rdma;
    out.append(entry);
  }
  return out;
}

py::dict stats(Engine& engine) {
  const Snapshot snapshot = under_lock(engine, false, [](Held& held) {
    Snapshot taken;
    taken.node = held->node().stats();
    taken.latencies = held->operations.latencies();
    taken.gpus = held->gpus();
    taken.pairs = held->rdma.memory.gpus.all();
    for (const auto& [key, rail] : held->rails.all()) taken.rails.push_back(*rail);
    return taken;
  });
  py::dict latency, threads, out;
  for (std::size_t op = 0; op < kOpNames.size(); ++op) {
    latency[kOpNames[op]] = histogram_of(snapshot.latencies[op]);
  }
  threads["count"] = 2;
  threads["progress_sleeps"] = engine.progress().sleeps();
  threads["watches"] = engine.progress().watches();
  threads["progress_rests"] = engine.progress().rests();
  out["transfers"] = transfers_of(snapshot.node);
  out["rails"] = rails_of(snapshot);
  out["latency"] = latency;
  out["threads"] = threads;
  out["gpus"] = gpus_of(snapshot);
  return out;
}

void trace(Engine& engine, bool on) {
  under_lock(engine, true, [&](Held& held) {
    held->trace.turn(on);
    held->copy_trace.turn(on);
  });
}

py::list take_trace(Engine& engine) {
  const auto slices = under_lock(engine, false, [](Held& held) { return held->trace.take(); });
  py::list out;
  for (const auto& [event, rail] : slices) {
    out.append(py::make_tuple(event.flow, rail->peer, rail->name, event.offset, event.bytes,
                              event.posted, event.ended, event.acked));
  }
  return out;
}

py::list take_copy_trace(Engine& engine) {
  const auto copies = under_lock(engine, false, [](Held& held) { return held->copy_trace.take(); });
  py::list out;
  for (const TracedCopy& copy : copies) {
    out.append(py::make_tuple(copy.device, copy.way, copy.bytes, copy.begun, copy.ended));
  }
  return out;
}

}  // namespace

void bind_statistics(EngineClass& engine) {
  engine.def("stats", &stats)
      .def("trace", &trace, py::arg("on"))
      .def("take_trace", &take_trace)
      .def("take_copy_trace", &take_copy_trace);
}

}  // namespace tent::bindings
