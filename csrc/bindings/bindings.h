// Stage: api, its C++ side. The pieces of module torch_tent._engine; one file each.
// Thread: Python's. The GIL is let go wherever a call waits or may hold the engine lock for long,
// and is never taken while the engine lock is held.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <utility>

#include "bindings/gil.h"
#include "core/node.h"
#include "engine/engine.h"

namespace tent::bindings {

namespace py = pybind11;

using EngineClass = py::class_<Engine, std::shared_ptr<Engine>>;

void bind_layout(py::module_& module);
void bind_devices(py::module_& module);
void bind_operation(py::module_& module);
void bind_transfers(EngineClass& engine);
void bind_memory(py::module_& module, EngineClass& engine);
void bind_peers(py::module_& module, EngineClass& engine);
void bind_rdma(py::module_& module, EngineClass& engine);
void bind_statistics(EngineClass& engine);

// A failure at the call, as RuntimeError.
void throw_unless_ok(const Status& status);
// A time `timeout` seconds from now; None is kNever.
TimeNs deadline_of(const py::object& timeout);
// Waits in pieces so that Ctrl-C is heard. `wait(until)` runs without the GIL and is true at the
// end.
bool wait_with_signals(TimeNs until, const std::function<bool(TimeNs)>& wait);

// Runs `body(held)` under the engine lock. The GIL is kept when the lock is free and the work is
// `short`: letting it go could cost a whole turn of another Python thread.
template <class Body>
auto under_lock(Engine& engine, bool is_short, Body body) {
  if (is_short) {
    std::optional<Held> held;
    if (engine.try_hold(held)) return body(*held);
  }
  const WithoutGil release;
  Held held = engine.hold();
  return body(held);
}

}  // namespace tent::bindings
