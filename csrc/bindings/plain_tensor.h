// Stage: api, its C++ side. The common case of a source or destination, read without a call into
// Python for each of its properties: a contiguous tensor in CPU memory. Through the C functions
// that DLPack has tensor types offer (`__dlpack_c_exchange_api__`), so that no header and no
// version of torch is needed; where a type does not offer them, nothing is plain and Python looks
// itself. Thread: Python's, with the GIL. What always holds: what is called plain would pass every
// check of torch_tent/tensors.py.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace tent::bindings {

namespace py = pybind11;

struct PlainTensor {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  std::uint32_t dtype = 0;  // the number that Python gave its dtype
  std::int32_t dims = 0;
  const std::int64_t* shape = nullptr;  // the tensor's own
};

// Makes tensors of the example's type and dtype plain: the number of the dtype, and the bytes of an
// element. Real dtypes only. False: its type does not offer what is needed here.
bool learn_dtype(const py::object& example, std::uint32_t code, std::uint32_t item_bytes);

// False: not plain, or not known to be. Throws nothing.
bool read_plain(PyObject* tensor, bool writable, PlainTensor& out);

}  // namespace tent::bindings
