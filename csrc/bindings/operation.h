// Stage: api, its C++ side. A transfer as Python holds it, and how an engine starts one for Python.
#pragma once

#include "bindings/bindings.h"

namespace tent::bindings {

void bind_verbs(py::module_& module, EngineClass& engine);

// A new Python object of type Operation. Starts the transfer; `options` are those of the verbs.
// Throws as Engine::hold().
py::object start(std::shared_ptr<Engine> engine, Request&& request, const py::dict& options);
// The same without options, and watched (late) from the start. A new reference.
PyObject* start_plain(const std::shared_ptr<Engine>& engine, Request&& request);

// What an object of type Operation stands for; throws TypeError for others.
const OperationRef& operation_of(const py::handle& given);

}  // namespace tent::bindings
