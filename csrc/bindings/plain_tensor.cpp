// Stage: api. See plain_tensor.h.
#include "bindings/plain_tensor.h"

#include <unordered_map>

namespace tent::bindings {
namespace {

// The part of DLPack's interface that is used here; dlpack.h, version 1.
struct DlDevice {
  std::int32_t kind, number;
};
struct DlDtype {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t dims;
  DlDtype dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t offset;
};
static_assert(sizeof(DlTensor) == 48);
struct DlExchange {
  std::uint32_t major, minor;
  DlExchange* previous;
  void* unused[3];
  int (*view)(void* object, DlTensor* out);
};

constexpr std::uint32_t kMajor = 1;
constexpr std::int32_t kCpu = 1;

struct Element {
  std::uint32_t code, bytes;
};

struct Known {  // written while the package is imported, under the GIL
  PyTypeObject* type = nullptr;
  int (*view)(void*, DlTensor*) = nullptr;
  // By torch's own object for the dtype: DLPack calls several of them by one name.
  std::unordered_map<const PyObject*, Element> elements;
  PyObject *dtype = nullptr, *is_neg = nullptr, *requires_grad = nullptr;
};

Known& known() {
  static Known found;
  return found;
}

bool view_of(const Known& from, PyObject* tensor, DlTensor& out) {
  if (from.view(tensor, &out) == 0) return true;
  PyErr_Clear();
  return false;
}

bool take_type(Known& into, PyObject* example) {
  PyTypeObject* type = Py_TYPE(example);
  if (into.type != nullptr) return into.type == type;
  PyObject* capsule =
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  const auto* offered =
      capsule == nullptr
          ? nullptr
          : static_cast<const DlExchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_XDECREF(capsule);
  PyErr_Clear();
  if (offered == nullptr || offered->major != kMajor || offered->view == nullptr) return false;
  into.type = type;
  into.view = offered->view;
  into.dtype = PyUnicode_InternFromString("dtype");
  into.is_neg = PyUnicode_InternFromString("is_neg");
  into.requires_grad = PyUnicode_InternFromString("requires_grad");
  Py_INCREF(type);
  return true;
}

// Whether `found`, a new reference, is False.
bool is_false(PyObject* found) {
  if (found == nullptr) PyErr_Clear();
  Py_XDECREF(found);
  return found == Py_False;
}

const Element* element_of(const Known& from, PyObject* tensor) {
  PyObject* dtype = PyObject_GetAttr(tensor, from.dtype);
  if (dtype == nullptr) PyErr_Clear();
  Py_XDECREF(dtype);
  const auto found = from.elements.find(dtype);
  return found == from.elements.end() ? nullptr : &found->second;
}

bool contiguous(const DlTensor& tensor) {
  if (tensor.strides == nullptr) return true;
  std::int64_t step = 1;
  for (std::int32_t dim = tensor.dims - 1; dim >= 0; --dim) {
    if (tensor.shape[dim] != 1 && tensor.strides[dim] != step) return false;
    step *= tensor.shape[dim];
  }
  return true;
}

}  // namespace

bool learn_dtype(const py::object& example, std::uint32_t code, std::uint32_t item_bytes) {
  Known& all = known();
  DlTensor view{};
  if (!take_type(all, example.ptr()) || !view_of(all, example.ptr(), view)) return false;
  py::object dtype = example.attr("dtype");
  all.elements[dtype.release().ptr()] = {code, item_bytes};  // kept for good
  return true;
}

bool read_plain(PyObject* tensor, bool writable, PlainTensor& out) {
  Known& all = known();
  DlTensor view{};
  if (Py_TYPE(tensor) != all.type || !view_of(all, tensor, view)) return false;
  if (view.device.kind != kCpu || !contiguous(view)) return false;
  const Element* element = element_of(all, tensor);
  if (element == nullptr) return false;
  out.bytes = element->bytes;
  for (std::int32_t dim = 0; dim < view.dims; ++dim) out.bytes *= std::uint64_t(view.shape[dim]);
  if (view.data == nullptr && out.bytes != 0) return false;
  if (writable && !is_false(PyObject_GetAttr(tensor, all.requires_grad))) return false;
  if (!is_false(PyObject_CallMethodNoArgs(tensor, all.is_neg))) return false;
  out.address = reinterpret_cast<std::uint64_t>(view.data) + view.offset;
  out.dtype = element->code;
  out.dims = view.dims;
  out.shape = view.shape;
  return true;
}

}  // namespace tent::bindings
