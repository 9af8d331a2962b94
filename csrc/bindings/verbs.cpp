// Stage: api. The verbs for what is most common: a plain tensor and no options. One call from
// Python each, and None where something about it is not plain; then the caller goes the long way,
// which also knows what is wrong.
// Thread: Python's; the GIL is kept for what is small (see under_lock).
#include <new>
#include <optional>

#include "bindings/operation.h"
#include "bindings/plain_tensor.h"
#include "bindings/python_call.h"

namespace tent::bindings {
namespace {

struct Verbs {
  PyObject_HEAD;
  std::shared_ptr<Engine> engine;
  PyObject* used;  // called with a tensor of at least `used_bytes_min` before it is; may be null
  std::uint64_t used_bytes_min;
};

PyTypeObject* verbs_type = nullptr;  // made with the module, lives as long as the process

using Arguments = PyObject* const*;

const std::shared_ptr<Engine>& engine_of(PyObject* self) {
  return reinterpret_cast<Verbs*>(self)->engine;
}

void drop(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  reinterpret_cast<Verbs*>(self)->engine.~shared_ptr();
  Py_CLEAR(reinterpret_cast<Verbs*>(self)->used);
  PyObject_Free(self);
  Py_DECREF(type);
}

void tell_used(PyObject* self, PyObject* object, const PlainTensor& tensor) {
  const auto* verbs = reinterpret_cast<Verbs*>(self);
  if (verbs->used == nullptr || tensor.bytes < verbs->used_bytes_min) return;
  PyObject* done = PyObject_CallOneArg(verbs->used, object);
  if (done == nullptr) throw py::error_already_set();
  Py_DECREF(done);
}

void expect(Py_ssize_t given, Py_ssize_t wanted) {
  if (given != wanted) throw py::type_error("wrong number of arguments for a verb");
}

// (tensor, peer, context, tag); the peer is None where a message may come from any.
PyObject* message(Request::Op op, PyObject* self, Arguments given, Py_ssize_t count) {
  expect(count, 4);
  PlainTensor tensor;
  if (!PyLong_CheckExact(given[3]) || !read_plain(given[0], op == Request::Op::Recv, tensor)) {
    return Py_NewRef(Py_None);
  }
  const std::uint64_t tag = PyLong_AsUnsignedLongLong(given[3]);
  if (tag > std::uint64_t(INT64_MAX)) {  // or no number from 0 up at all
    PyErr_Clear();
    return Py_NewRef(Py_None);
  }
  tell_used(self, given[0], tensor);
  Request request;
  request.op = op;
  request.peer = given[1] == Py_None ? kAnyPeer : PeerId(word_of(given[1]));
  request.context = word_of(given[2]);
  request.tag = tag;
  request.meta = tensor.dtype;
  request.local = Layout::contiguous(tensor.address, tensor.bytes);
  return start_plain(engine_of(self), std::move(request));
}

// What is asked of the tensor at our end: the shape and dtype of the remote one.
bool fits(const PlainTensor& tensor, PyObject* shape, PyObject* dtype) {
  if (tensor.dtype != word_of(dtype) || PyTuple_GET_SIZE(shape) != tensor.dims) return false;
  for (std::int32_t dim = 0; dim < tensor.dims; ++dim) {
    if (PyLong_AsLongLong(PyTuple_GET_ITEM(shape, dim)) != tensor.shape[dim]) return false;
  }
  return true;
}

// (tensor, (peer, segment, key, epoch, layout, shape, dtype))
PyObject* one_sided(Request::Op op, PyObject* self, Arguments given, Py_ssize_t count) {
  expect(count, 2);
  PlainTensor tensor;
  if (!read_plain(given[0], op == Request::Op::Read, tensor)) return Py_NewRef(Py_None);
  if (!PyTuple_Check(given[1])) throw py::type_error("the place is a tuple");
  expect(PyTuple_GET_SIZE(given[1]), 7);
  const auto of = [place = given[1]](Py_ssize_t at) { return PyTuple_GET_ITEM(place, at); };
  if (!PyTuple_Check(of(5))) throw py::type_error("the shape is a tuple");
  if (!fits(tensor, of(5), of(6))) return Py_NewRef(Py_None);
  tell_used(self, given[0], tensor);
  Request request;
  request.op = op;
  request.peer = PeerId(word_of(of(0)));
  request.local = Layout::contiguous(tensor.address, tensor.bytes);
  request.remote = {SegmentId(word_of(of(1))), word_of(of(2)), std::uint32_t(word_of(of(3))),
                    py::cast<const Layout&>(py::handle(of(4)))};
  return start_plain(engine_of(self), std::move(request));
}

PyObject* send(PyObject* self, Arguments given, Py_ssize_t count) {
  return guarded([&] { return message(Request::Op::Send, self, given, count); });
}

PyObject* recv(PyObject* self, Arguments given, Py_ssize_t count) {
  return guarded([&] { return message(Request::Op::Recv, self, given, count); });
}

PyObject* write(PyObject* self, Arguments given, Py_ssize_t count) {
  return guarded([&] { return one_sided(Request::Op::Write, self, given, count); });
}

PyObject* read(PyObject* self, Arguments given, Py_ssize_t count) {
  return guarded([&] { return one_sided(Request::Op::Read, self, given, count); });
}

template <auto Function>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Function)),
          METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {
    method<send>("send"), method<recv>("recv"),           method<write>("write"),
    method<read>("read"), {nullptr, nullptr, 0, nullptr},
};
PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(drop)},
    {Py_tp_methods, methods},
    {0, nullptr},
};
PyType_Spec spec = {"torch_tent._engine.Verbs", sizeof(Verbs), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

py::object verbs_of(const std::shared_ptr<Engine>& engine, const py::object& used,
                    std::uint64_t used_bytes_min) {
  auto* made = PyObject_New(Verbs, verbs_type);
  if (made == nullptr) throw py::error_already_set();
  new (&made->engine) std::shared_ptr<Engine>(engine);
  made->used = used.is_none() ? nullptr : Py_NewRef(used.ptr());
  made->used_bytes_min = used_bytes_min;
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(made));
}

}  // namespace

void bind_verbs(py::module_& module, EngineClass& engine) {
  PyObject* type = PyType_FromSpec(&spec);
  if (type == nullptr) throw py::error_already_set();
  verbs_type = reinterpret_cast<PyTypeObject*>(type);
  module.attr("Verbs") = py::reinterpret_steal<py::object>(type);
  module.def("learn_dtype", &learn_dtype, py::arg("example"), py::arg("code"),
             py::arg("item_bytes"));
  engine.def("verbs", &verbs_of, py::arg("used") = py::none(), py::arg("used_bytes_min") = 0);
}

}  // namespace tent::bindings
