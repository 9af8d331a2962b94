"""Stage: api. CUDA tensors: whether there is a driver, whose memory a tensor has, and the stream in
which the caller queues work on it.

Called for every tensor that is not on the CPU, on the caller's thread. What always holds: the
driver is opened when the first CUDA tensor is seen, never at import; no context is made on a GPU
that no tensor is on; what cannot be moved raises here.
"""

from __future__ import annotations

import functools

import torch

from . import _engine

LIBRARY = "libcuda.so.1"
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


def current_stream(device: int) -> int:
    """The stream in which the caller queues work on this GPU now; 0: none, or the default one."""
    if device == HOST:
        return 0
    found: int = torch._C._cuda_getCurrentRawStream(device)
    return found
