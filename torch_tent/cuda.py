"""Stage: api. CUDA tensors: whether there is a driver, whose memory a tensor has, and the stream in
which the caller queues work on it.

Called for every tensor that is not on the CPU, on the caller's thread. What always holds: the
driver is opened when the first CUDA tensor is seen, never at import; no context is made on a GPU
that no tensor is on; what cannot be moved raises here.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import _engine

LIBRARY = "libcuda.so.1"
LEGACY = 1  # torch has no ExternalStream for it.
HOST = -1  # Instead of a GPU's number: ordinary memory.


@functools.cache
def why_not() -> str:
    """Why this process cannot move memory of GPUs; "" when it can. Opens the driver."""
    return _engine.load_cuda(LIBRARY)


def device_of(tensor: torch.Tensor, what: str) -> int:
    """The GPU that holds the tensor's memory, as torch and the driver count them; HOST for the CPU.

    Raises ValueError without a driver, and where the driver does not know the memory.
    """
    if tensor.is_cpu:
        return HOST
    reason = why_not()
    if reason:
        raise ValueError(f"the {what} is on {tensor.device}, but {reason}")
    device = tensor.device.index
    if device is None or not 0 <= device < _engine.cuda_device_count():
        raise ValueError(
            f"the {what} is on {tensor.device}, but this process sees "
            f"{_engine.cuda_device_count()} GPU(s)"
        )
    if tensor.numel() == 0:
        return device
    first = tensor.data_ptr()
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    last = first + reach * tensor.element_size()
    for address in (first, last):
        found = _engine.cuda_device_of(address)
        if found == HOST:
            raise ValueError(
                f"the {what} says it is on {tensor.device}, but the CUDA driver does not know its "
                f"memory at {address:#x}: was its storage freed or resized?"
            )
        if found != device:
            raise ValueError(
                f"the {what} says it is on {tensor.device}, but its memory at {address:#x} is on "
                f"cuda:{found}"
            )
    return device


def contiguous(tensor: torch.Tensor) -> _engine.Layout | None:
    """The bytes of a contiguous tensor on a GPU; None where device_of() would raise, or may."""
    device, address, bytes_ = tensor.get_device(), tensor.data_ptr(), tensor.nbytes
    if not address or why_not() or not _engine.cuda_holds(device, address, bytes_):
        return None
    return _engine.Layout.contiguous(address, bytes_, device, current_stream(device))


def imported(x: Any, what: str, writable: bool) -> torch.Tensor:
    """The tensor on the memory of an object that has __cuda_array_interface__ and no __dlpack__.

    What its owner has queued on the stream that it names goes before the transfer. Raises
    ValueError where there is no driver, and for what may not be written.
    """
    reason = why_not()
    if reason:
        raise ValueError(f"the {what} is a {type(x).__name__} in CUDA memory, but {reason}")
    facts = x.__cuda_array_interface__
    try:
        read_only = facts["data"][1]
        stream = facts.get("stream")
        tensor = share(x)
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"the {what}, a {type(x).__name__}, could not be taken over by its "
            f"__cuda_array_interface__: {error}"
        ) from error
    if writable and read_only:
        raise ValueError(f"the {what} is a read-only {type(x).__name__}: nothing can go there")
    if stream is not None:
        follow(stream, tensor)
    return tensor


def share(x: Any) -> torch.Tensor:
    """A tensor on the memory that an object's __cuda_array_interface__ describes."""
    return torch.as_tensor(x, device="cuda")


def follow(stream: int, tensor: torch.Tensor) -> None:
    """The current stream of the tensor's GPU goes on after what that other stream has queued.

    `stream` is as in __cuda_array_interface__: 1 is the legacy default stream.
    """
    external: Any = torch.cuda.ExternalStream
    if stream == LEGACY:
        other = torch.cuda.default_stream(tensor.device)
    else:
        other = external(stream, device=tensor.device)
    torch.cuda.current_stream(tensor.device).wait_stream(other)


def current_stream(device: int) -> int:
    """The stream in which the caller queues work on this GPU now; 0: none, or the default one."""
    if device == HOST:
        return 0
    found: int = torch._C._cuda_getCurrentRawStream(device)
    return found
