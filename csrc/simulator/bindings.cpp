// Stage: tests. Module torch_tent._simulator; torch_tent/_simulator.pyi says what each call does.
// Thread: Python's. The GIL is released while schedules run, so that several threads can run some.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "simulator/core_bindings.h"
#include "simulator/profile.h"
#include "simulator/simulate.h"

namespace py = pybind11;

namespace tent::sim {
namespace {

py::dict to_python(const Outcome& outcome) {
  py::dict seen;
  for (std::size_t i = 0; i < outcome.seen.size(); ++i) seen[kSeenNames[i]] = outcome.seen[i];
  py::list failures;
  for (const Failure& failure : outcome.failures) {
    failures.append(py::make_tuple(failure.seed, failure.why));
  }
  py::dict out;
  out["schedules"] = outcome.schedules;
  out["events"] = outcome.events;
  out["hash"] = outcome.hash;
  out["seen"] = seen;
  out["failures"] = failures;
  out["log"] = outcome.text;
  return out;
}

py::dict run(std::uint64_t seed, std::uint64_t schedules, const std::string& family,
             const std::string& sabotage, bool log, std::uint64_t failures_max) {
  Plan plan;
  plan.first_seed = seed;
  plan.schedules = schedules;
  plan.sabotage = sabotage;
  plan.keep_text = log;
  plan.failures_max = failures_max;
  if (!family.empty()) {
    const auto found = std::find(kFamilyNames.begin(), kFamilyNames.end(), family);
    if (found == kFamilyNames.end()) {
      throw py::value_error("there is no family of schedules \"" + family + "\"");
    }
    plan.family = static_cast<int>(found - kFamilyNames.begin());
  }
  Outcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = simulate(plan);
  }
  return to_python(outcome);
}

}  // namespace
}  // namespace tent::sim

PYBIND11_MODULE(_simulator, module) {
  namespace sim = tent::sim;
  module.def("run", &sim::run, py::arg("seed"), py::arg("schedules") = 1, py::arg("family") = "",
             py::arg("sabotage") = "", py::arg("log") = false, py::arg("failures_max") = 1);
  py::list families;
  for (std::string_view name : sim::kFamilyNames) families.append(std::string(name));
  module.attr("FAMILIES") = families;
  sim::bind_core(module);
}
