"""Stage: tests. CUDA tensors in a torch that was built without CUDA: real tensors of torch's, on
the device "cuda", in the memory of tests/native/fake_cuda.cpp.

Called in child processes. What always holds: `use()` comes before the first CUDA tensor of the
process, and stays; their memory cannot be touched from the CPU; kernels run when their stream's
turn comes, and memory that was freed is spoiled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from tests import fake_cuda
from tests.native_modules import native_module
from torch_tent import cuda


class TorchOnFake:
    """CUDA as a test uses it; one per process."""

    def __init__(self) -> None:
        self.driver = fake_cuda.use()
        self.c = build()
        self.c.open(self.driver.c.__file__)
        cuda.current_stream = lambda device: (
            0 if device == cuda.HOST else int(self.c.current_stream(device))
        )
        torch_cuda: Any = torch.cuda
        torch_cuda._lazy_init = lambda: None
        torch_cuda.get_device_capability = lambda device=None: (9, 0)

    def to_gpu(self, values: torch.Tensor, device: int = 0) -> torch.Tensor:
        """A copy on a GPU."""
        made: torch.Tensor = self.c.to_gpu(values, device)
        return made

    def full(self, count: int, value: float, device: int = 0) -> torch.Tensor:
        """A vector of float32 on a GPU."""
        return self.to_gpu(torch.full((count,), value), device)

    @contextmanager
    def stream(self, device: int = 0) -> Iterator[int]:
        """Another stream is the current one while the block runs."""
        stream = int(self.c.stream(device))
        before = self.c.set_stream(device, stream)
        try:
            yield stream
        finally:
            self.c.set_stream(device, before)

    def hold(self, device: int = 0) -> None:
        """The current stream does nothing more until go_on()."""
        self.c.hold(device)

    def go_on(self) -> None:
        """Lets the streams go that were held."""
        self.c.go_on()

    def fill(self, tensor: torch.Tensor, value: int) -> None:
        """Queues a kernel that sets all bytes of a contiguous tensor."""
        self.c.fill(tensor, value)

    def synchronize(self, device: int = 0) -> None:
        """Waits for the current stream."""
        self.c.synchronize(device)


def build() -> ModuleType:
    """Compiles what is missing; takes minutes the first time."""
    return native_module("torch_on_fake_cuda", [], torch=True)


@functools.cache
def use() -> TorchOnFake:
    """Gives this process's torch CUDA."""
    return TorchOnFake()
