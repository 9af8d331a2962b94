// Stage: c10d. The module _c10d_torch_X_Y: makes the backend for torch_tent/process_group.py.
#include <pybind11/chrono.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings/gil.h"
#include "c10d/backend.h"
#include "c10d/storages.h"

namespace py = pybind11;

namespace tent {

namespace {

// Keeps a Python object until the last copy goes, on whatever thread that happens.
EngineOwner hold(py::object object) {
  return EngineOwner(new py::object(std::move(object)), [](void* held) {
    auto* owned = static_cast<py::object*>(held);
    if (!Py_IsInitialized()) return;  // the process ends: there is nothing left to free
    const bindings::WithGil gil;
    delete owned;
  });
}

const TentApi* api_of(const py::capsule& table) {
  const auto* api = table.get_pointer<const TentApi>();
  TORCH_CHECK(api->version == TENT_API_VERSION,
              "torch_tent._engine and torch_tent._c10d_torch are not of "
              "one build: build both again");
  return api;
}

c10::intrusive_ptr<TentBackend> make_backend(py::object engine, const py::capsule& table, int rank,
                                             int size, std::uint64_t context,
                                             std::vector<std::uint32_t> peers, std::string name,
                                             std::chrono::milliseconds timeout,
                                             std::vector<std::uint64_t> global_ranks) {
  const TentApi* api = api_of(table);
  TORCH_CHECK(peers.size() == std::size_t(size), "there must be one peer per rank");
  Membership membership{
      rank, size, context, std::move(peers), std::move(name), timeout, std::move(global_ranks)};
  EngineOwner owner = hold(std::move(engine));
  const bindings::WithoutGil no_gil;
  return c10::make_intrusive<TentBackend>(api, std::move(owner), std::move(membership));
}

}  // namespace

}  // namespace tent

// setup.py names it after the torch that it is compiled against.
PYBIND11_MODULE(TENT_C10D_MODULE, m) {
  using tent::TentBackend;
  using tent::TentOptions;
  py::module_::import("torch.distributed");  // it knows the base class
  const auto copy = [](const TentOptions& self) { return c10::make_intrusive<TentOptions>(self); };
  py::class_<TentOptions, ::c10d::Backend::Options, c10::intrusive_ptr<TentOptions>>(m, "Options")
      .def("__copy__", copy)
      .def("__deepcopy__", [copy](const TentOptions& self, const py::dict&) { return copy(self); });
  py::class_<TentBackend, ::c10d::Backend, c10::intrusive_ptr<TentBackend>>(m, "TentBackend")
      .def_property_readonly("options", &TentBackend::getBackendOptions)
      .def_property_readonly("context",
                             [](const TentBackend& self) { return self.membership().context; })
      .def_property_readonly("peers",
                             [](const TentBackend& self) { return self.membership().peers; });
  m.def("make_backend", &tent::make_backend, py::arg("engine"), py::arg("table"), py::arg("rank"),
        py::arg("size"), py::arg("context"), py::arg("peers"), py::arg("name"), py::arg("timeout"),
        py::arg("global_ranks"));
  m.def(
      "used",
      [](const at::Tensor& tensor, const py::capsule& table) {
        tent::used(tensor, *tent::api_of(table));
      },
      py::arg("tensor"), py::arg("table"));
}
