// Stage: api. Layout: where bytes lie, from Python tuples. Index lists are copied once, in C++.
// Thread: Python's, with the GIL. A layout that came through here cannot overflow.
#include "core/layout.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"

namespace tent::bindings {
namespace {

// Index lists as C++ has them. The parts of many layers share one: it is copied once here, and so
// it is sent once, too.
class IndexLists {
 public:
  std::shared_ptr<const BlockList> of(const py::handle& given) {
    if (given.is_none()) return nullptr;
    if (!given.is(last_)) {
      copied_ = copy(given);
      last_ = py::reinterpret_borrow<py::object>(given);
    }
    return copied_;
  }

 private:
  static std::shared_ptr<const BlockList> copy(const py::handle& given) {
    using Indices = py::array_t<std::int64_t, py::array::c_style>;
    if (!py::isinstance<Indices>(given)) {
      throw py::type_error("block indices must be a contiguous NumPy array of int64");
    }
    const auto indices = py::reinterpret_borrow<Indices>(given);
    if (indices.ndim() != 1) throw py::value_error("block indices must have one dimension");
    return std::make_shared<const BlockList>(
        std::vector<std::int64_t>(indices.data(), indices.data() + indices.size()));
  }

  py::object last_;
  std::shared_ptr<const BlockList> copied_;
};

Part part_of(const py::handle& given, IndexLists& lists) {
  const auto fields = py::cast<py::tuple>(given);
  if (fields.size() != 5) {
    throw py::value_error("a part is (base, plane, piece_bytes, dims, blocks)");
  }
  Part part;
  part.base = fields[0].cast<std::uint64_t>();
  part.plane = fields[1].cast<std::uint32_t>();
  part.piece_bytes = fields[2].cast<std::uint64_t>();
  for (const auto& dim : py::cast<py::sequence>(fields[3])) {
    const auto [count, stride] = py::cast<std::pair<std::uint64_t, std::int64_t>>(dim);
    part.dims.push_back({count, stride});
  }
  part.blocks = lists.of(fields[4]);
  if (part.blocks && (part.dims.empty() || part.dims[0].count != part.blocks->size())) {
    throw py::value_error("the outermost dim must count as many blocks as there are indices");
  }
  std::int64_t low = 0, high = 0;
  if (!part.extent(low, high)) throw py::value_error("a layout must not exceed 2^63 bytes");
  return part;
}

Layout layout_of(const py::sequence& given, Device device, std::uint64_t stream) {
  std::vector<Part> parts;
  parts.reserve(py::len(given));
  IndexLists lists;
  std::uint64_t bytes = 0;
  for (const auto& part : given) {
    parts.push_back(part_of(part, lists));
    bytes += parts.back().bytes();
    if (bytes > std::uint64_t(INT64_MAX)) {
      throw py::value_error("a layout must not exceed 2^63 bytes");
    }
  }
  return Layout(std::move(parts), device, stream);
}

}  // namespace

void bind_layout(py::module_& module) {
  py::class_<Layout>(module, "Layout")
      .def(py::init(&layout_of), py::arg("parts"), py::arg("device") = kHost, py::arg("stream") = 0)
      .def_static("contiguous", &Layout::contiguous, py::arg("address"), py::arg("bytes"),
                  py::arg("device") = kHost, py::arg("stream") = 0)
      .def_property_readonly("bytes", &Layout::bytes)
      .def_property_readonly("device", &Layout::device);
}

}  // namespace tent::bindings
