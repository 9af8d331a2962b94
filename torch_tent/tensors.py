"""Stage: api. Turns what the caller holds (tensor, NumPy array, DLPack) into a layout of bytes.

Called by every verb, on the caller's thread, before anything moves; holds no state. What always
holds: a layout's line of bytes is the elements in row-major order, whatever the strides are; a
destination never has two elements in one place; what cannot be carried raises here, with a reason.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from . import _engine, cuda

# base, plane, bytes of one piece, (count, stride in bytes) outermost first, block indices
Part = tuple[int, int, int, Sequence[tuple[int, int]], "np.ndarray[Any, Any] | None"]

# Smaller pieces cost more to list one by one than to copy together first (sources only).
PACK_BELOW_BYTES = 64
# Whether a storage was made smaller than its tensor is asked beyond this only: it takes a tenth of
# the time of a small message. A storage that was freed is always noticed.
UNCHECKED_BYTES = 8 << 10

_QUANTIZED = {torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4}


def _dtype_codes() -> dict[torch.dtype, int]:
    """A number for each dtype that is the same in every process: made from its name, never 0."""
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return {d: zlib.crc32(str(d).encode()) or 1 for d in found - _QUANTIZED}


DTYPE_CODES = _dtype_codes()
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_CODES}

_Tensor = torch.Tensor
_strided = torch.strided
# Of the dtypes that cannot be lazily conjugated: most tensors are of one, and need one look less.
_real_code_of = {d: code for d, code in DTYPE_CODES.items() if not d.is_complex}.get
_contiguous = _engine.Layout.contiguous

# The engine's verbs look into tensors of these dtypes by themselves.
for _dtype, _code in DTYPE_CODES.items():
    if not _dtype.is_complex:
        _engine.learn_dtype(torch.empty(0, dtype=_dtype), _code, _dtype.itemsize)


def source(x: Any) -> tuple[torch.Tensor, _engine.Layout, int]:
    """The memory to read for `x`: the tensor to keep alive, where its bytes lie, its dtype code.

    Any strides are fine, expanded ones too. Lazily conjugated or negated tensors, and those of
    very small scattered pieces, are copied first.
    Raises TypeError or ValueError where there is no memory to read.
    """
    if type(x) is _Tensor and x.is_cpu and x.layout is _strided and x.is_contiguous():
        code = _real_code_of(x.dtype)
        if code is not None and not x.is_neg():
            address, size = x.data_ptr(), x.nbytes
            if address and (size <= UNCHECKED_BYTES or _fits(x, size)):
                return x, _contiguous(address, size), code
    if type(x) is _Tensor and x.is_cuda:
        plain = _plain_cuda(x)
        if plain is not None:
            return plain
    tensor = _checked(x, "source", writable=False)
    tensor = tensor.detach().resolve_conj().resolve_neg()
    piece_bytes, dims = grid(tensor.shape, steps(tensor), tensor.element_size())
    if dims and piece_bytes < PACK_BELOW_BYTES:
        tensor = tensor.contiguous()
    return tensor, _layout(tensor, "source"), DTYPE_CODES[tensor.dtype]


def destination(x: Any) -> tuple[torch.Tensor, _engine.Layout, int]:
    """The memory to fill for `x`: the tensor to keep alive, where its bytes go, its dtype code.

    Raises TypeError or ValueError where there is no memory to fill, or two of its elements
    share a place, or autograd needs the old values.
    """
    if type(x) is _Tensor and x.is_cpu and x.layout is _strided and x.is_contiguous():
        code = _real_code_of(x.dtype)
        if code is not None and not x.is_neg() and not x.requires_grad:
            address, size = x.data_ptr(), x.nbytes
            if address and (size <= UNCHECKED_BYTES or _fits(x, size)):
                return x, _contiguous(address, size), code
    if type(x) is _Tensor and x.is_cuda and not x.requires_grad:
        plain = _plain_cuda(x)
        if plain is not None:
            return plain
    tensor = _checked(x, "destination", writable=True)
    check_fillable(tensor)
    return tensor, _layout(tensor, "destination"), DTYPE_CODES[tensor.dtype]


def _plain_cuda(x: torch.Tensor) -> tuple[torch.Tensor, _engine.Layout, int] | None:
    """What `source` returns of a tensor on a GPU, for those that need no second look."""
    code = _real_code_of(x.dtype)
    if code is None or x.layout is not _strided or not x.is_contiguous() or x.is_neg():
        return None
    if x.nbytes > UNCHECKED_BYTES and not _fits(x, x.nbytes):
        return None
    layout = cuda.contiguous(x)
    return None if layout is None else (x, layout, code)


def exported(x: Any, writable: bool) -> torch.Tensor:
    """`x` as a tensor whose memory peers may touch in place. Raises as `destination` does."""
    tensor = _checked(x, "segment", writable=writable)
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(
            "a lazily conjugated or negated tensor cannot be a segment: peers would see the "
            "values before the conjugation; register x.resolve_conj().resolve_neg()"
        )
    if writable:
        check_fillable(tensor)
    if tensor.is_cpu:
        _keep_size(tensor)
    return tensor


def _keep_size(tensor: torch.Tensor) -> None:
    """Makes resizing the tensor's storage an error from now on: torch refuses it for memory that
    NumPy has seen. (Peers go by addresses, and nobody would tell them.)"""
    torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()


def steps(tensor: torch.Tensor) -> list[int]:
    """The tensor's strides in bytes."""
    item_bytes = tensor.element_size()
    return [stride * item_bytes for stride in tensor.stride()]


def grid(
    shape: Sequence[int], strides_bytes: Sequence[int], item_bytes: int
) -> tuple[int, list[tuple[int, int]]]:
    """The elements of a strided array as a grid of equal pieces: (bytes of a piece, dims).

    Each of the dims is (count, stride in bytes), outermost first. Neighbouring dimensions that
    advance evenly become one, so a contiguous array is one piece without dims. An array without
    elements has pieces of 0 bytes.
    """
    if 0 in shape:
        return 0, []
    piece_bytes = item_bytes
    dims: list[tuple[int, int]] = []
    for count, step in zip(reversed(shape), reversed(strides_bytes), strict=True):
        if count == 1:
            continue
        if not dims and step == piece_bytes:
            piece_bytes *= count
        elif dims and step == dims[-1][0] * dims[-1][1]:
            dims[-1] = (dims[-1][0] * count, dims[-1][1])
        else:
            dims.append((count, step))
    dims.reverse()
    return piece_bytes, dims


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """(address, bytes) from the first to the last element of a strided tensor."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def check_fillable(tensor: torch.Tensor) -> None:
    """Raises ValueError where writing to the tensor's memory would not mean what was asked."""
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(
            "the destination is a lazily conjugated or negated view: give the tensor that it is "
            "a view of, or a new one"
        )
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "the destination requires grad, and filling it is not recorded by autograd: do it "
            "under torch.no_grad(), or give x.detach()"
        )
    if _may_overlap(tensor):
        raise ValueError(
            f"elements of the destination share memory, or may (shape {tuple(tensor.shape)}, "
            f"strides {tensor.stride()}), as after expand(): fill a contiguous tensor and copy_ it"
        )


def _may_overlap(tensor: torch.Tensor) -> bool:
    """Whether two elements could be in one place; True also for what is too odd to tell."""
    if tensor.is_contiguous():
        return False
    reach = 0
    for step, count in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if count > 1:
            if step <= reach:
                return True
            reach += step * (count - 1)
    return False


def _layout(tensor: torch.Tensor, what: str) -> _engine.Layout:
    device = cuda.device_of(tensor, what)
    stream = cuda.current_stream(device)
    piece_bytes, dims = grid(tensor.shape, steps(tensor), tensor.element_size())
    if not dims:
        return _contiguous(tensor.data_ptr(), piece_bytes, device, stream)
    return _engine.Layout([(tensor.data_ptr(), 0, piece_bytes, dims, None)], device, stream)


def _checked(x: Any, what: str, writable: bool) -> torch.Tensor:
    """`x` as a strided tensor in CPU or CUDA memory, or an error that says why it is none."""
    tensor = x if isinstance(x, torch.Tensor) else _imported(x, what, writable)
    wraps = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    if wraps:
        raise TypeError(
            f"the {what} is a {type(tensor).__name__}, which has no memory of its own: give the "
            "tensor inside it (a DTensor's is x.to_local())"
        )
    if tensor.device.type not in ("cpu", "cuda"):
        why = "has no memory" if tensor.is_meta else "is not carried"
        raise ValueError(
            f"the {what} is on device {str(tensor.device)!r}, which {why}: CPU and CUDA memory is "
            "moved here; copy it with x.cpu() first"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"the {what} has layout {tensor.layout}: its parts are tensors of their own; move "
            "those (values and indices), or x.to_dense()"
        )
    if tensor.dtype not in DTYPE_CODES:
        raise TypeError(
            f"the {what} has the quantized dtype {tensor.dtype}: move x.int_repr() and tell the "
            "peer its scale and zero point"
        )
    check_storage(tensor, what)
    return tensor


def _fits(x: torch.Tensor, size: int) -> bool:
    """Whether a contiguous tensor still lies in its storage."""
    return x.storage_offset() * x.itemsize + size <= x.untyped_storage().nbytes()


def check_storage(tensor: torch.Tensor, what: str) -> None:
    """Raises ValueError for a tensor whose storage was freed or made smaller than it."""
    if tensor.numel() == 0:
        return
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + reach + 1) * tensor.element_size()
    there = tensor.untyped_storage().nbytes()
    if needed > there:
        raise ValueError(
            f"the {what} needs {needed} bytes of a storage that has {there}: it was freed or "
            "resized after the tensor was made"
        )


def _imported(x: Any, what: str, writable: bool) -> torch.Tensor:
    """Foreign memory as a tensor that shares it: NumPy, then DLPack (CuPy and others)."""
    if isinstance(x, np.ndarray):
        return _from_numpy(x, what, writable)
    if hasattr(x, "__dlpack__"):
        try:
            return torch.utils.dlpack.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"the {what}, a {type(x).__name__}, could not be taken over by DLPack: {error}"
            ) from error
    if hasattr(x, "__cuda_array_interface__"):
        return cuda.imported(x, what, writable)
    raise TypeError(
        f"the {what} is a {type(x).__name__}: give a tensor, a NumPy array, or anything with "
        "__dlpack__ or __cuda_array_interface__"
    )


def _from_numpy(x: np.ndarray[Any, Any], what: str, writable: bool) -> torch.Tensor:
    """A tensor on the array's own memory."""
    if any(step < 0 for step in x.strides):
        raise ValueError(
            f"the {what} is a NumPy array with negative strides {x.strides}, which tensors do not "
            "have: give np.ascontiguousarray(x)"
        )
    if writable and not x.flags.writeable:
        raise ValueError(f"the {what} is a read-only NumPy array: nothing can be written there")
    try:
        if x.flags.writeable:
            return torch.from_numpy(x)
        return _from_read_only(x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the {what} is a NumPy array of dtype {x.dtype} and strides {x.strides}, which no "
            f"tensor can share ({error}): convert it with x.astype(...) first"
        ) from error


def _from_read_only(x: np.ndarray[Any, Any]) -> torch.Tensor:
    """As torch.from_numpy, which warns of arrays that must not be written; sources never are."""
    dtype = torch.from_numpy(np.empty(0, x.dtype)).dtype
    if any(step % x.itemsize for step in x.strides):
        raise ValueError("the strides are no multiples of the item's size")
    if x.size == 0:
        return torch.empty(x.shape, dtype=dtype)
    bytes_ = sum((n - 1) * step for n, step in zip(x.shape, x.strides, strict=True)) + x.itemsize
    memory = (ctypes.c_char * bytes_).from_address(x.ctypes.data)
    memory.array = x  # The tensor's storage keeps the array alive.
    steps = [step // x.itemsize for step in x.strides]
    return torch.frombuffer(memory, dtype=dtype).as_strided(x.shape, steps)
