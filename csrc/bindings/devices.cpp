// Stage: api. The CUDA driver for Python: whether there is one, and whose memory an address is.
// Thread: Python's; opening the driver happens without the GIL.
#include "bindings/bindings.h"
#include "drivers/cuda.h"

namespace tent::bindings {
namespace {

// "" when the driver is open, else why it is not.
std::string load_cuda(const std::string& library) {
  const WithoutGil release;
  std::string why;
  Cuda::load(library, why);
  return why;
}

const Cuda& driver() {
  const Cuda* cuda = Cuda::loaded();
  if (cuda == nullptr) throw std::runtime_error("the CUDA driver was not opened");
  return *cuda;
}

}  // namespace

void throw_unless_ok(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.text);
}

void bind_devices(py::module_& module) {
  using py::arg;
  module.def("load_cuda", &load_cuda, arg("library"))
      .def("cuda_device_count", [] { return driver().device_count(); })
      .def(
          "cuda_uuid", [](int device) { return driver().uuid(device); }, arg("device"))
      .def(
          "cuda_device_of", [](std::uint64_t address) { return driver().device_of(address); },
          arg("address"));
}

}  // namespace tent::bindings
