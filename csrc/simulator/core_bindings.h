// Stage: tests. The small classes of csrc/core for Python's property tests.
// Thread: Python's; nothing here is shared between threads.
#pragma once

#include <pybind11/pybind11.h>

namespace tent::sim {

void bind_core(pybind11::module_& module);

}  // namespace tent::sim
