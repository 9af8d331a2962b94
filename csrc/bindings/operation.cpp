// Stage: api. Operation: a transfer as Python holds it. Any Python thread; waits without the GIL.
// A type that CPython calls directly: two of its methods are on the way of every small message.
#include "bindings/operation.h"

#include <functional>
#include <new>

#include "bindings/python_call.h"
#include "engine/clock.h"

namespace tent::bindings {
namespace {

constexpr TimeNs kSignalCheck = 100 * kMillisecond;
constexpr std::uint64_t kShortBytes = 64u << 10;

struct PythonOperation {
  PyObject_HEAD;
  std::shared_ptr<Engine> engine;
  OperationRef operation;
};

PyTypeObject* operation_type = nullptr;  // made with the module, lives as long as the process

PythonOperation& self_of(PyObject* self) { return *reinterpret_cast<PythonOperation*>(self); }

PyObject* wrap(std::shared_ptr<Engine> engine, OperationRef operation) {
  auto* made = PyObject_New(PythonOperation, operation_type);
  if (made == nullptr) throw py::error_already_set();
  new (&made->engine) std::shared_ptr<Engine>(std::move(engine));
  new (&made->operation) OperationRef(std::move(operation));
  return reinterpret_cast<PyObject*>(made);
}

void drop(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  self_of(self).operation.~OperationRef();
  self_of(self).engine.~shared_ptr();
  PyObject_Free(self);
  Py_DECREF(type);
}

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

OperationRef launch(Engine& engine, Request&& request, Watch watch) {
  const bool is_short = request.local.bytes() <= kShortBytes && request.local.device() == kHost;
  return under_lock(engine, is_short, [&](Held& held) {
    OperationRef operation = held->start(std::move(request));
    operation->watch = watch;
    return operation;
  });
}

const Report& report_of(PyObject* self) {
  const PythonOperation& mine = self_of(self);
  if (!mine.operation->ready()) {
    mine.engine->check();
    throw std::runtime_error("the transfer has not ended: wait for it first");
  }
  return mine.operation->report;
}

PyObject* wait(PyObject* self, PyObject* timeout) {
  return guarded([&] {
    Engine& engine = *self_of(self).engine;
    Operation& operation = *self_of(self).operation;
    if (operation.ready()) return PyBool_FromLong(engine.wait(operation, 0));
    return PyBool_FromLong(
        wait_with_signals(deadline_of(py::reinterpret_borrow<py::object>(timeout)),
                          [&](TimeNs until) { return engine.wait(operation, until); }));
  });
}

PyObject* done(PyObject* self, PyObject*) {
  return PyBool_FromLong(self_of(self).operation->ready());
}

PyObject* status(PyObject* self, PyObject*) {
  return guarded([&] {
    const Status& status = report_of(self).status;
    return py::make_tuple(int(status.code), status.text, status.rail).release().ptr();
  });
}

PyObject* report(PyObject* self, PyObject*) {
  return guarded([&] {
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
    return out.release().ptr();
  });
}

PyObject* cancel(PyObject* self, PyObject*) {
  return guarded([&] {
    const PythonOperation& mine = self_of(self);
    if (!mine.operation->ready()) {
      under_lock(*mine.engine, true, [&](Held& held) { held->cancel(mine.operation->id); });
    }
    return Py_NewRef(Py_None);
  });
}

PyObject* id(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(self_of(self).operation->id);
}

PyObject* failed(PyObject* self, void*) {
  return guarded([&] { return PyBool_FromLong(!report_of(self).status.ok()); });
}

PyMethodDef methods[] = {
    {"wait", wait, METH_O, nullptr},          {"done", done, METH_NOARGS, nullptr},
    {"status", status, METH_NOARGS, nullptr}, {"report", report, METH_NOARGS, nullptr},
    {"cancel", cancel, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef properties[] = {
    {"id", id, nullptr, nullptr, nullptr},
    {"failed", failed, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(drop)},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {0, nullptr},
};
PyType_Spec spec = {"torch_tent._engine.Operation", sizeof(PythonOperation), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

}  // namespace

py::object start(std::shared_ptr<Engine> engine, Request&& request, const py::dict& options) {
  if (!options.empty()) read_options(options, request);
  OperationRef operation = launch(*engine, std::move(request), Watch::No);
  return py::reinterpret_steal<py::object>(wrap(std::move(engine), std::move(operation)));
}

PyObject* start_plain(const std::shared_ptr<Engine>& engine, Request&& request) {
  return wrap(engine, launch(*engine, std::move(request), Watch::Late));
}

const OperationRef& operation_of(const py::handle& given) {
  if (Py_TYPE(given.ptr()) != operation_type) throw py::type_error("this is no Operation");
  return self_of(given.ptr()).operation;
}

TimeNs deadline_of(const py::object& timeout) {
  return timeout.is_none() ? kNever : after(now_ns(), timeout.cast<double>());
}

bool wait_with_signals(TimeNs until, const std::function<bool(TimeNs)>& wait) {
  for (;;) {
    const TimeNs now = now_ns();
    {
      const WithoutGil release;
      if (wait(std::min(until, now + kSignalCheck))) return true;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (now_ns() >= until) return false;
  }
}

void bind_operation(py::module_& module) {
  PyObject* type = PyType_FromSpec(&spec);
  if (type == nullptr) throw py::error_already_set();
  operation_type = reinterpret_cast<PyTypeObject*>(type);
  module.attr("Operation") = py::reinterpret_steal<py::object>(type);
}

}  // namespace tent::bindings
