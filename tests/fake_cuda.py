"""Stage: tests. GPUs that are none: tests/native/fake_cuda.cpp as this process's libcuda, and
tensors in its memory that say they are on "cuda".

Called by fixtures and by child processes. What always holds: `use()` comes before the first CUDA
tensor of the process; touching a fake tensor's memory from the CPU is a segmentation fault, so what
passes a test did not do it.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from tests.native_modules import native_module
from torch_tent import cuda

INTO, OUT_OF, ACROSS = 0, 1, 2


class FakeTensor(torch.Tensor):
    """A CPU tensor to torch, on addresses that only the fake driver can touch."""

    is_cpu = False  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]
    number: int

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", Fake.of(self))


class Fake:
    """The fake driver as a test uses it; one per process."""

    _homes: ClassVar[list[tuple[int, int, int]]] = []  # address, bytes, device

    def __init__(self) -> None:
        self.c = native_module("fake_cuda", [])
        self.stream = 0  # the current one, of every device
        assert self.c.__file__ is not None
        cuda.LIBRARY = self.c.__file__
        cuda.why_not.cache_clear()
        cuda.current_stream = lambda device: 0 if device == cuda.HOST else self.stream
        cuda.share = self.share
        cuda.follow = lambda stream, tensor: setattr(self, "stream", stream)
        assert cuda.why_not() == ""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> int:
        """The device that a fake tensor is on."""
        address = torch.Tensor.data_ptr(tensor)
        for start, size, device in cls._homes:
            if start <= address < start + size:
                return device
        return 0

    def tensor(self, values: torch.Tensor, device: int = 0, shareable: bool = True) -> FakeTensor:
        """A copy of the values on a fake GPU. `shareable`: other processes may open the memory."""
        values = values.contiguous()
        size = values.nbytes
        address = self.c.alloc(device, size, shareable)
        self._homes.append((address, size, device))
        memory = (ctypes.c_char * size).from_address(address)
        flat = torch.frombuffer(memory, dtype=values.dtype).view(values.shape)
        made: FakeTensor = torch.Tensor._make_subclass(FakeTensor, flat)
        self.poke(made, values)
        return made

    def share(self, x: Any) -> FakeTensor:
        """What torch.as_tensor makes of an object with __cuda_array_interface__."""
        facts = x.__cuda_array_interface__
        if facts.get("strides") is not None:
            raise ValueError("the fake knows contiguous arrays only")
        dtype = torch.from_numpy(np.empty(0, facts["typestr"])).dtype
        memory = (ctypes.c_char * x.nbytes).from_address(facts["data"][0])
        flat = torch.frombuffer(memory, dtype=dtype).view(facts["shape"])
        made: FakeTensor = torch.Tensor._make_subclass(FakeTensor, flat)
        return made

    def poke(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Writes all bytes of a contiguous fake tensor, at once and past all streams."""
        values = values.contiguous()
        shadow = self.c.shadow(tensor.data_ptr())
        ctypes.memmove(shadow, values.data_ptr(), values.nbytes)

    def peek(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a contiguous fake tensor holds now."""
        out = torch.empty(tensor.shape, dtype=tensor.dtype)
        shadow = self.c.shadow(tensor.data_ptr())
        ctypes.memmove(out.data_ptr(), shadow, out.nbytes)
        return out

    def replace(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Frees the tensor's memory; a new allocation with these values comes to its address."""
        self.c.replace(tensor.data_ptr())
        self.poke(tensor, values)

    def free(self, tensor: torch.Tensor) -> None:
        self.c.free(tensor.data_ptr())

    def model(
        self,
        into: float = 0,
        out_of: float = 0,
        latency_s: float = 0,
        jitter_s: float = 0,
        across: float = 0,
    ) -> None:
        """Bytes per second of copies each way (0: no time), and how late each may be."""
        self.c.model(into, out_of, across, latency_s, jitter_s)

    def fail(self, function: str, after: int = 0, result: int = 2) -> None:
        """The call of this function after so many others fails, once."""
        self.c.fail(function, after, result)

    def kernel(self, tensor: torch.Tensor, seconds: float, value: int) -> None:
        """Fills the tensor's bytes on the current stream, after so long."""
        self.c.kernel(self.stream, seconds, tensor.data_ptr(), tensor.nbytes, value)

    def copied(self, device: int, way: int) -> int:
        """Bytes that were copied one way since the process began: INTO, OUT_OF or ACROSS."""
        return int(self.c.copied(device, way))

    def span(self, device: int, out_of: bool) -> tuple[float, float]:
        """When the first copy one way began and the last one ended, since `model` was called."""
        first, last = self.c.span(device, out_of)
        return float(first), float(last)

    def idle(self) -> None:
        """Waits until no stream has anything to do."""
        until(lambda: not self.c.working())


@functools.cache
def use() -> Fake:
    """Makes the fake this process's driver."""
    return Fake()


def until(ready: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Waits for something that must come."""
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.001)
