// Stage: api, its C++ side. A transfer as Python holds it, and how an engine starts one for Python.
#pragma once

#include "bindings/bindings.h"

namespace tent::bindings {

struct PythonOperation {
  std::shared_ptr<Engine> engine;
  OperationRef operation;
};

PythonOperation start(std::shared_ptr<Engine> engine, Request&& request, const py::dict& options);

}  // namespace tent::bindings
