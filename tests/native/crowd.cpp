// Stage: tests. What a thread that yields learns of others that want its processor.
#include "engine/crowd.h"

#include <pybind11/pybind11.h>

PYBIND11_MODULE(crowd, m) {
  pybind11::class_<tent::Crowd>(m, "Crowd")
      .def(pybind11::init<>())
      .def("here", &tent::Crowd::here)
      .def("learn", &tent::Crowd::learn);
}
