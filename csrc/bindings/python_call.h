// Stage: api, its C++ side. What the calls of the fast path share: C++ errors become Python's, and
// words of Python become numbers. For functions that CPython calls directly, not through pybind11,
// whose dispatch costs as much as posting a small message.
// Thread: Python's, with the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <stdexcept>

namespace tent::bindings {

namespace py = pybind11;

// Runs `body`, which returns a new reference; null with a Python error set where it throws.
template <class Body>
PyObject* guarded(Body body) noexcept {
  try {
    return body();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// A whole number that fits; throws what Python raised for anything else.
inline std::uint64_t word_of(PyObject* number) {
  const std::uint64_t found = PyLong_AsUnsignedLongLong(number);
  if (found == std::uint64_t(-1) && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

}  // namespace tent::bindings
