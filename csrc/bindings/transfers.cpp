// Stage: api. How Python starts transfers and hears of their ends in batches.
// Any Python thread. `on_done` runs on the notifier thread, with the GIL, without any lock.
#include <pybind11/stl.h>

#include "bindings/operation.h"

namespace tent::bindings {
namespace {

using EngineRef = std::shared_ptr<Engine>;

py::object message(Request::Op op, EngineRef&& engine, PeerId peer, std::uint64_t context,
                   std::uint64_t tag, std::uint32_t meta, const Layout& local,
                   const py::dict& options) {
  Request request;
  request.op = op;
  request.peer = peer;
  request.context = context;
  request.tag = tag;
  request.meta = meta;
  request.local = local;
  return start(std::move(engine), std::move(request), options);
}

py::object send(EngineRef engine, PeerId peer, std::uint64_t context, std::uint64_t tag,
                std::uint32_t meta, const Layout& local, const py::dict& options) {
  return message(Request::Op::Send, std::move(engine), peer, context, tag, meta, local, options);
}

py::object recv(EngineRef engine, const py::object& peer, std::uint64_t context, std::uint64_t tag,
                std::uint32_t meta, const Layout& local, const py::dict& options) {
  const PeerId from = peer.is_none() ? kAnyPeer : peer.cast<PeerId>();
  return message(Request::Op::Recv, std::move(engine), from, context, tag, meta, local, options);
}

Request one_sided(Request::Op op, PeerId peer, const Layout& local, SegmentId segment,
                  std::uint64_t key, std::uint32_t epoch, const Layout& remote) {
  Request request;
  request.op = op;
  request.peer = peer;
  request.local = local;
  request.remote = {segment, key, epoch, remote};
  return request;
}

py::object write(EngineRef engine, PeerId peer, const Layout& local, SegmentId segment,
                 std::uint64_t key, std::uint32_t epoch, const Layout& remote,
                 const std::optional<std::string>& note, const py::dict& options) {
  Request request = one_sided(Request::Op::Write, peer, local, segment, key, epoch, remote);
  request.has_note = note.has_value();
  if (note) request.note = *note;
  return start(std::move(engine), std::move(request), options);
}

py::object read(EngineRef engine, PeerId peer, const Layout& local, SegmentId segment,
                std::uint64_t key, std::uint32_t epoch, const Layout& remote,
                const py::dict& options) {
  return start(std::move(engine),
               one_sided(Request::Op::Read, peer, local, segment, key, epoch, remote), options);
}

// The callback dies wherever the engine does, maybe without the GIL.
std::shared_ptr<py::object> shared_callback(const py::object& callback) {
  return {new py::object(callback), [](py::object* last) {
            if (!Py_IsInitialized()) return;  // the interpreter is gone, and its objects with it
            const WithGil gil;
            delete last;
          }};
}

void on_done(Engine& engine, const py::object& callback) {
  engine.check();
  Notifier::OnDone told;
  if (!callback.is_none()) {
    told = [shared = shared_callback(callback)](const std::vector<std::uint64_t>& ids) {
      const WithGil gil;
      try {
        (*shared)(ids);
      } catch (py::error_already_set& error) {
        error.discard_as_unraisable("torch_tent's on_done callback");
      }
    };
  }
  const WithoutGil release;
  engine.notifier().on_done(std::move(told));
}

void watch(Engine& engine, const py::handle& operation, bool soon) {
  const OperationRef& watched = operation_of(operation);
  under_lock(engine, true,
             [&](Held& held) { held->watch(watched, soon ? Watch::Soon : Watch::Late); });
}

}  // namespace

void bind_transfers(EngineClass& engine) {
  using py::arg;
  engine
      .def("send", &send, arg("peer"), arg("context"), arg("tag"), arg("meta"), arg("local"),
           arg("options"))
      .def("recv", &recv, arg("peer"), arg("context"), arg("tag"), arg("meta"), arg("local"),
           arg("options"))
      .def("write", &write, arg("peer"), arg("local"), arg("segment"), arg("key"), arg("epoch"),
           arg("remote"), arg("note"), arg("options"))
      .def("read", &read, arg("peer"), arg("local"), arg("segment"), arg("key"), arg("epoch"),
           arg("remote"), arg("options"))
      .def("on_done", &on_done, arg("callback"))
      .def("watch", &watch, arg("operation"), arg("soon"));
}

}  // namespace tent::bindings
