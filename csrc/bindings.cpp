// Stage: api. Module torch_tent._engine: the data plane for Python; torch_tent/_engine.pyi says
// what each call does. Thread: Python's. Engines that are still open when the interpreter ends are
// closed before it, while their callbacks can still run.
#include "bindings/bindings.h"

#include <pybind11/stl.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "bindings/operation.h"

namespace tent::bindings {
namespace {

// Weak: an engine dies with its last user. Under the GIL.
std::vector<std::weak_ptr<Engine>>& open_engines() {
  static auto* engines = new std::vector<std::weak_ptr<Engine>>;
  return *engines;
}

TimeNs time_of(const py::handle& seconds) {
  return TimeNs(seconds.cast<double>() * double(kSecond));
}

EngineSettings settings_of(const py::dict& given) {
  EngineSettings settings;
  const std::map<std::string, std::function<void(const py::handle&)>> known{
      {"slice_bytes_min",
       [&](auto& v) { settings.slice_bytes_min = v.template cast<std::uint64_t>(); }},
      {"slice_bytes_max",
       [&](auto& v) { settings.slice_bytes_max = v.template cast<std::uint64_t>(); }},
      {"inline_bytes_max",
       [&](auto& v) { settings.inline_bytes_max = v.template cast<std::uint64_t>(); }},
      {"eager_bytes_max",
       [&](auto& v) { settings.eager_bytes_max = v.template cast<std::uint64_t>(); }},
      {"slice_time_s", [&](auto& v) { settings.slice_time = time_of(v); }},
      {"target_delay_s", [&](auto& v) { settings.target_delay = time_of(v); }},
      {"overdue_min_s", [&](auto& v) { settings.overdue_min = time_of(v); }},
      {"overdue_factor", [&](auto& v) { settings.overdue_factor = v.template cast<double>(); }},
      {"peer_timeout_s", [&](auto& v) { settings.peer_timeout = time_of(v); }},
      {"keepalive_s", [&](auto& v) { settings.keepalive = time_of(v); }},
      {"rest_after_s", [&](auto& v) { settings.rest_after = time_of(v); }},
      {"rdma_links_max",
       [&](auto& v) { settings.rdma_links_max = v.template cast<std::uint32_t>(); }},
      {"rdma", [&](auto& v) { settings.rdma = v.template cast<bool>(); }},
      {"gpu_gather_bytes_max",
       [&](auto& v) { settings.gpu_gather_bytes_max = v.template cast<std::uint64_t>(); }},
      {"rdma_kept_bytes_max",
       [&](auto& v) { settings.rdma_kept_bytes_max = v.template cast<std::uint64_t>(); }},
      {"rdma_library", [&](auto& v) { settings.rdma_library = v.template cast<std::string>(); }},
      {"checksum", [&](auto& v) { settings.checksum = v.template cast<bool>(); }},
  };
  for (const auto& [key, value] : given) {
    const auto name = py::cast<std::string>(key);
    const auto setting = known.find(name);
    if (setting == known.end()) throw py::value_error("unknown engine setting: " + name);
    setting->second(value);
  }
  return settings;
}

// Closing joins threads that may be waiting for the GIL, so whoever drops the last reference lets
// it go.
std::shared_ptr<Engine> make_engine(const py::dict& given) {
  std::shared_ptr<Engine> engine = Engine::make(settings_of(given));
  Engine* bare = engine.get();
  std::shared_ptr<Engine> held(bare, [engine = std::move(engine)](Engine*) mutable {
    std::optional<WithoutGil> release;
    if (Py_IsInitialized() && PyGILState_Check()) release.emplace();
    engine.reset();
  });
  auto& open = open_engines();
  std::erase_if(open, [](const auto& weak) { return weak.expired(); });
  open.push_back(held);
  return held;
}

void close_engine(Engine& engine) {
  const WithoutGil release;
  engine.close();
}

void close_all() {
  for (const auto& weak : std::vector(open_engines())) {
    if (const auto engine = weak.lock()) close_engine(*engine);
  }
}

}  // namespace

PYBIND11_MODULE(_engine, module) {
  bind_layout(module);
  bind_devices(module);
  bind_operation(module);
  EngineClass engine(module, "Engine");
  engine.def(py::init(&make_engine), py::arg("settings"))
      .def("close", &close_engine)
      .def_property_readonly("c_api", [](const Engine& self) {
        return py::capsule(self.c_api(), "torch_tent.engine");
      });
  bind_transfers(engine);
  bind_verbs(module, engine);
  bind_memory(module, engine);
  bind_peers(module, engine);
  bind_rdma(module, engine);
  bind_statistics(engine);
  py::module_::import("atexit").attr("register")(py::cpp_function(&close_all));
}

}  // namespace tent::bindings
