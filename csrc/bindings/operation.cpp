// Stage: api. Operation: a transfer as Python holds it. Any Python thread; waits without the GIL.
#include "bindings/operation.h"

#include <functional>

#include "engine/clock.h"

namespace tent::bindings {
namespace {

constexpr TimeNs kSignalCheck = 100 * kMillisecond;
constexpr std::uint64_t kShortBytes = 64u << 10;

void read_options(const py::dict& options, Request& request) {
  for (const auto& [key, value] : options) {
    const auto name = py::cast<std::string>(key);
    if (name == "priority") {
      request.priority = value.cast<int>() == 0 ? Priority::Foreground : Priority::Background;
    } else if (name == "timeout") {
      request.expires = after(now_ns(), value.cast<double>());
    } else if (name == "deadline") {
      request.deadline = after(now_ns(), value.cast<double>());
    } else if (name == "rails") {
      request.rails = RailKinds(value.cast<unsigned>());
    } else {
      throw py::value_error("unknown transfer option: " + name);
    }
  }
}

const Report& report_of(const PythonOperation& self) {
  if (!self.operation->ready()) {
    self.engine->check();
    throw std::runtime_error("the transfer has not ended: wait for it first");
  }
  return self.operation->report;
}

bool wait(const PythonOperation& self, const py::object& timeout) {
  Engine& engine = *self.engine;
  Operation& operation = *self.operation;
  if (operation.ready()) return engine.wait(operation, 0);
  return wait_with_signals(deadline_of(timeout),
                           [&](TimeNs until) { return engine.wait(operation, until); });
}

py::tuple status(const PythonOperation& self) {
  const Status& status = report_of(self).status;
  return py::make_tuple(int(status.code), status.text, status.rail);
}

py::dict report(const PythonOperation& self) {
  const Report& report = report_of(self);
  py::dict rails;
  for (const RailShare& share : report.rails) {
    rails[py::str(share.rail)] = py::make_tuple(share.bytes, share.slices);
  }
  py::dict out;
  out["bytes"] = report.bytes;
  out["seconds"] = double(report.ended - report.started) * 1e-9;
  out["rails"] = rails;
  out["retries"] = report.retries;
  out["fences"] = report.fences;
  out["path"] = report.path;
  out["peer"] = report.peer == kAnyPeer ? py::object(py::none()) : py::int_(report.peer);
  return out;
}

void cancel(const PythonOperation& self) {
  if (self.operation->ready()) return;
  under_lock(*self.engine, true, [&](Held& held) { held->cancel(self.operation->id); });
}

}  // namespace

PythonOperation start(std::shared_ptr<Engine> engine, Request&& request, const py::dict& options) {
  if (!options.empty()) read_options(options, request);
  const bool is_short = request.local.bytes() <= kShortBytes && request.local.device() == kHost;
  OperationRef operation =
      under_lock(*engine, is_short, [&](Held& held) { return held->start(std::move(request)); });
  return {std::move(engine), std::move(operation)};
}

TimeNs deadline_of(const py::object& timeout) {
  return timeout.is_none() ? kNever : after(now_ns(), timeout.cast<double>());
}

bool wait_with_signals(TimeNs until, const std::function<bool(TimeNs)>& wait) {
  for (;;) {
    const TimeNs now = now_ns();
    {
      const py::gil_scoped_release release;
      if (wait(std::min(until, now + kSignalCheck))) return true;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (now_ns() >= until) return false;
  }
}

void bind_operation(py::module_& module) {
  py::class_<PythonOperation>(module, "Operation")
      .def_property_readonly("id", [](const PythonOperation& self) { return self.operation->id; })
      .def("done", [](const PythonOperation& self) { return self.operation->ready(); })
      .def("wait", &wait, py::arg("timeout"))
      .def_property_readonly(
          "failed", [](const PythonOperation& self) { return !report_of(self).status.ok(); })
      .def("status", &status)
      .def("report", &report)
      .def("cancel", &cancel);
}

}  // namespace tent::bindings
