// Stage: api. The CUDA driver for Python: whether there is one, and whose memory an address is.
// Thread: Python's; opening the driver happens without the GIL.
#include "bindings/bindings.h"
#include "drivers/cuda.h"
#include "transports/rdma/gpu_probe.h"

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

std::string cuda_pci(int device) {
  CudaDevice id = 0;
  char text[32] = "";
  const CudaApi& api = driver().api();
  if (api.device_get(&id, device) != kCudaSuccess) return "";
  return api.device_pci(text, sizeof text, id) == kCudaSuccess ? text : "";
}

// "" when the RDMA device moves the GPU's memory by itself, else why it does not.
std::string try_gpudirect(const std::string& library, const std::string& device, std::uint8_t port,
                          std::uint8_t gid_index, Device gpu) {
  const WithoutGil release;
  Status status;
  const std::unique_ptr<Verbs> verbs = Verbs::open(library, status);
  if (verbs) status = probe_gpu(*verbs, {device, port, gid_index}, gpu);
  return status.text;
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
          "cuda_can_read", [](int device, int other) { return driver().can_read(device, other); },
          arg("device"), arg("other"))
      .def("cuda_pci", &cuda_pci, arg("device"))
      .def("try_gpudirect", &try_gpudirect, arg("library"), arg("device"), arg("port"),
           arg("gid_index"), arg("gpu"))
      .def(
          "cuda_holds",
          [](int device, std::uint64_t address, std::uint64_t bytes) {
            return driver().why_not_on(device, address, bytes).empty();
          },
          arg("device"), arg("address"), arg("bytes"))
      .def(
          "cuda_device_of", [](std::uint64_t address) { return driver().device_of(address); },
          arg("address"));
}

}  // namespace tent::bindings
