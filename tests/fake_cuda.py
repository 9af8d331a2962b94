"""Stage: tests. GPUs that are none: tests/native/fake_cuda.cpp as this process's libcuda, and tensors
in its memory that say they are on "cuda".

Called by fixtures and by child processes. What always holds: `use()` comes before the first CUDA
tensor of the process; touching a fake tensor's memory from the CPU is a segmentation fault, so what
passes a test did not do it.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torch_tent import cuda

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]
HEADERS = [ROOT / "csrc" / name for name in ("drivers/cuda_api.h", "engine/clock.h")]
SOURCE = ROOT / "tests/native/fake_cuda.cpp"

_numbers: dict[str, type[Any]] = {
    "fake_alloc": ctypes.c_uint64,
    "fake_shadow": ctypes.c_void_p,
    "fake_pinned": ctypes.c_uint64,
    "fake_calls": ctypes.c_uint64,
    "fake_busy": ctypes.c_double,
    "fake_stream": ctypes.c_void_p,
}


def library() -> Path:
    """The compiled fake; compiles it once per content of its source."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in [SOURCE, *HEADERS]:
        digest.update(path.read_bytes())
    folder = ROOT / "build/tests" / f"fake_cuda-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "libcuda_fake.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            command = ["g++", *FLAGS, f"-I{ROOT / 'csrc'}", str(SOURCE), "-o", f"{made}.new"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            Path(f"{made}.new").rename(made)
    return made


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

    _homes: list[tuple[int, int, int]] = []  # address, bytes, device

    def __init__(self) -> None:
        self.c = ctypes.CDLL(str(library()))
        for name, kind in _numbers.items():
            getattr(self.c, name).restype = kind
        self.stream = 0  # the current one, of every device
        cuda.LIBRARY = str(library())
        cuda.why_not.cache_clear()
        cuda.current_stream = lambda device: 0 if device == cuda.HOST else self.stream
        assert cuda.why_not() == ""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> int:
        """The device that a fake tensor is on."""
        address = torch.Tensor.data_ptr(tensor)
        for start, size, device in cls._homes:
            if start <= address < start + size:
                return device
        return 0

    def tensor(self, values: torch.Tensor, device: int = 0) -> FakeTensor:
        """A copy of the values on a fake GPU."""
        values = values.contiguous()
        size = values.nbytes
        address = self.c.fake_alloc(ctypes.c_int(device), ctypes.c_size_t(size))
        self._homes.append((address, size, device))
        memory = (ctypes.c_char * size).from_address(address)
        flat = torch.frombuffer(memory, dtype=values.dtype).view(values.shape)
        made: FakeTensor = torch.Tensor._make_subclass(FakeTensor, flat)
        self.poke(made, values)
        return made

    def poke(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Writes all bytes of a contiguous fake tensor, at once and past all streams."""
        values = values.contiguous()
        shadow = self.c.fake_shadow(ctypes.c_uint64(tensor.data_ptr()))
        ctypes.memmove(shadow, values.data_ptr(), values.nbytes)

    def peek(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a contiguous fake tensor holds now."""
        out = torch.empty(tensor.shape, dtype=tensor.dtype)
        shadow = self.c.fake_shadow(ctypes.c_uint64(tensor.data_ptr()))
        ctypes.memmove(out.data_ptr(), shadow, out.nbytes)
        return out

    def free(self, tensor: torch.Tensor) -> None:
        self.c.fake_free(ctypes.c_uint64(tensor.data_ptr()))

    def model(
        self, into: float = 0, out_of: float = 0, latency_s: float = 0, jitter_s: float = 0
    ) -> None:
        """Bytes per second of copies each way (0: no time), and how late each may be."""
        self.c.fake_model(*map(ctypes.c_double, (into, out_of, latency_s, jitter_s)))

    def fail(self, function: str, after: int = 0, result: int = 2) -> None:
        """The call of this function after so many others fails, once."""
        self.c.fake_fail(function.encode(), after, result)

    def kernel(self, tensor: torch.Tensor, seconds: float, value: int) -> None:
        """Fills the tensor's bytes on the current stream, after so long."""
        self.c.fake_kernel(
            ctypes.c_void_p(self.stream),
            ctypes.c_double(seconds),
            ctypes.c_uint64(tensor.data_ptr()),
            ctypes.c_size_t(tensor.nbytes),
            value,
        )

    def calls(self, function: str) -> int:
        return int(self.c.fake_calls(function.encode()))

    def idle(self) -> None:
        """Waits until no stream has anything to do."""
        until(lambda: not self.c.fake_working())


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
