// Stage: api. Memory as Python sees it: segments, revocation, notifications, shareable memory.
// Any Python thread; revoking and waiting happen without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <sys/random.h>

#include <array>
#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

#include "bindings/bindings.h"
#include "engine/clock.h"
#include "engine/shared_memory.h"

namespace tent::bindings {
namespace {

std::uint64_t random_word() {
  std::uint64_t word = 0;
  if (getrandom(&word, sizeof word, 0) != sizeof word) {
    throw std::system_error(errno, std::generic_category(), "random bytes for a segment's key");
  }
  return word;
}

py::tuple register_segment(Engine& engine, const std::vector<std::array<std::uint64_t, 3>>& planes,
                           bool readable, bool writable, std::uint64_t blocks, Device device) {
  std::vector<Plane> all;
  for (const auto& [address, bytes, step] : planes) all.push_back({address, bytes, step});
  const auto [id, key] = under_lock(engine, device == kHost, [&](Held& held) {
    if (device != kHost) throw_unless_ok(held->open_device(device));
    const Segment& segment =
        held->node().segments().add(all, readable, writable, blocks, random_word(), device);
    Pieces memory;
    for (const Plane& plane : all) memory.push_back({plane.base, plane.bytes});
    held->rdma.memory.hold({MemoryOwner::Kind::Segment, segment.id}, memory, device);
    return std::pair(segment.id, segment.key);
  });
  return py::make_tuple(id, key);
}

void close_segment(Engine& engine, SegmentId segment) {
  const WithoutGil release;
  engine.close_segment(segment);
}

// Throws when there is no such segment (any more).
Segment& open_segment(Held& held, SegmentId id) {
  Segment* segment = held->node().segments().find(id);
  if (!segment) throw py::key_error("segment " + std::to_string(id) + " is closed or never was");
  return *segment;
}

std::uint32_t revoke(Engine& engine, SegmentId segment, const py::handle& blocks) {
  using Indices = py::array_t<std::int64_t, py::array::c_style>;
  if (!py::isinstance<Indices>(blocks)) {
    throw py::type_error("blocks must be a contiguous NumPy array of int64");
  }
  const auto indices = py::reinterpret_borrow<Indices>(blocks);
  const std::vector<std::int64_t> all(indices.data(), indices.data() + indices.size());
  const WithoutGil release;
  return engine.revoke(segment, all);
}

std::uint32_t epoch(Engine& engine, SegmentId segment) {
  return under_lock(engine, true, [&](Held& held) { return open_segment(held, segment).epoch; });
}

py::list notifications(Engine& engine, SegmentId segment) {
  const auto notes = under_lock(engine, true, [&](Held& held) {
    return std::exchange(open_segment(held, segment).notes, {});
  });
  py::list out;
  for (const Notification& note : notes) {
    out.append(py::make_tuple(note.peer, py::bytes(note.payload)));
  }
  return out;
}

bool wait_notification(Engine& engine, SegmentId segment, const py::object& timeout) {
  return wait_with_signals(deadline_of(timeout),
                           [&](TimeNs until) { return engine.wait_notification(segment, until); });
}

std::unique_ptr<SharedMemory> allocate(std::shared_ptr<Engine> engine, std::size_t bytes) {
  const WithoutGil release;
  return std::make_unique<SharedMemory>(std::move(engine), bytes);
}

}  // namespace

void bind_memory(py::module_& module, EngineClass& engine) {
  using py::arg;
  py::class_<SharedMemory>(module, "SharedMemory", py::buffer_protocol())
      .def_property_readonly(
          "address",
          [](const SharedMemory& self) { return reinterpret_cast<std::uint64_t>(self.address()); })
      .def_property_readonly("bytes", &SharedMemory::bytes)
      .def_buffer([](SharedMemory& self) {
        return py::buffer_info(static_cast<std::uint8_t*>(self.address()),
                               py::ssize_t(self.bytes()));
      });
  engine
      .def("register", &register_segment, arg("planes"), arg("readable"), arg("writable"),
           arg("blocks"), arg("device") = kHost)
      .def("close_segment", &close_segment, arg("segment"))
      .def("revoke", &revoke, arg("segment"), arg("blocks"))
      .def("epoch", &epoch, arg("segment"))
      .def("notifications", &notifications, arg("segment"))
      .def("wait_notification", &wait_notification, arg("segment"), arg("timeout"))
      .def("allocate", &allocate, arg("bytes"));
}

}  // namespace tent::bindings
