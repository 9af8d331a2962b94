"""Stage: tests. torch's own CUDA with the calls of tests/torch_on_fake.py: what was shown on the
fake can be shown on a real GPU.

Called in child processes. What always holds: streams that were held go on at the latest when the
process ends. What only a fake can do (memory that is spoiled, copies that come late) is missing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

AT_LEAST = 0  # CU_STREAM_WAIT_VALUE_GEQ in <cuda.h>


class TorchOnGpu:
    """CUDA as a test uses it; one per process. Where there are fewer GPUs than a test wants, one
    stands for several."""

    def __init__(self) -> None:
        torch.cuda.init()
        self.library = ctypes.CDLL("libcuda.so.1")
        self.held = 0
        self.released = torch.zeros(1, dtype=torch.int32).pin_memory()

    def _device(self, number: int) -> torch.device:
        return torch.device("cuda", number % torch.cuda.device_count())

    def to_gpu(self, values: torch.Tensor, device: int = 0) -> torch.Tensor:
        """A copy on a GPU, which every stream may use unless the current one is held."""
        made = values.to(self._device(device), copy=True)
        if int(self.released) == self.held:
            self.synchronize(device)
        return made

    def full(self, count: int, value: float, device: int = 0) -> torch.Tensor:
        """A vector of float32 on a GPU."""
        return self.to_gpu(torch.full((count,), value), device)

    @contextmanager
    def stream(self, device: int = 0) -> Iterator[int]:
        """Another stream is the current one while the block runs."""
        stream = torch.cuda.Stream(self._device(device))
        with torch.cuda.stream(stream):
            yield stream.cuda_stream

    def hold(self, device: int = 0) -> None:
        """The current stream does nothing more until go_on()."""
        self.held += 1
        stream = torch.cuda.current_stream(self._device(device)).cuda_stream
        code = self.library.cuStreamWaitValue32_v2(
            ctypes.c_void_p(stream),
            ctypes.c_uint64(self.released.data_ptr()),
            ctypes.c_uint32(self.held),
            ctypes.c_uint(AT_LEAST),
        )
        if code:
            raise RuntimeError(f"cuStreamWaitValue32 failed with {code}")

    def go_on(self) -> None:
        """Lets the streams go that were held."""
        self.released.fill_(self.held)

    def fill(self, tensor: torch.Tensor, value: int) -> None:
        """Queues a kernel that sets all bytes of a contiguous tensor."""
        tensor.view(torch.uint8).fill_(value)

    def synchronize(self, device: int = 0) -> None:
        """Waits for the current stream."""
        torch.cuda.current_stream(self._device(device)).synchronize()


@functools.cache
def use() -> TorchOnGpu:
    """This process's GPUs."""
    return TorchOnGpu()
