"""Stage: api. Tensors in shareable memory, which a process of the same host can map.

Called by `empty`, on any thread. What always holds: the memory lives exactly as long as a tensor
that uses it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from . import _engine


def empty(native: _engine.Engine, shape: Any, dtype: torch.dtype | None) -> torch.Tensor:
    """See `torch_tent.empty`."""
    if dtype is None:
        dtype = torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is {dtype!r}: it is a torch.dtype, or None for the default one")
    sizes = _sizes(shape)
    count = 1
    for size in sizes:
        count *= size
    bytes_ = count * dtype.itemsize
    if bytes_ >= 1 << 63:
        raise ValueError(f"shape {sizes} of {dtype} needs {bytes_} bytes: more than there can be")
    if bytes_ == 0:
        return torch.empty(sizes, dtype=dtype)
    # The tensor's storage holds the buffer, and unmaps it when it goes.
    memory: Any = native.allocate(bytes_)
    return torch.frombuffer(memory, dtype=torch.uint8, count=bytes_).view(dtype).view(sizes)


def _sizes(shape: Any) -> Sequence[int]:
    try:
        sizes = [operator.index(size) for size in shape]
    except TypeError:
        try:
            sizes = [operator.index(shape)]
        except TypeError:
            raise TypeError(f"shape is {shape!r}: it is one integer or several") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape {tuple(sizes)} has a negative size")
    return sizes
