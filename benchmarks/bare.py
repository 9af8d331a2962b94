"""Stage: benchmarks, in a player. limits.c as Python functions.

Called by arms/bare.py. Compiled when it is first needed, into a temporary folder by the digest of
its text. What always holds: a call that the kernel refused raises OSError.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("limits.c")
FLAGS = ["-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
EVENTFD, FUTEX, TCP, TCP_BUSY, SPIN = range(5)


def load() -> ctypes.CDLL:
    """The compiled limits; raises OSError where there is no C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise OSError("no C compiler: install gcc, or name one in CC")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"tent-limits-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder.name} belongs to another user: remove it")
    target = folder / f"{digest}.so"
    if not target.exists():
        fresh = folder / f"{digest}.{os.getpid()}"
        subprocess.run([compiler, *FLAGS, "-o", str(fresh), str(SOURCE)], check=True)
        fresh.rename(target)
    library = ctypes.CDLL(str(target))
    size, pointer, count = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_int
    library.copy_memory.argtypes = [pointer, pointer, size, count]
    library.copy_blocks.argtypes = [pointer] * 4 + [count, size, count]
    library.pull_memory.argtypes = [count, pointer, pointer, size, count]
    library.pull_blocks.argtypes = [count] + [pointer] * 4 + [count, size, count]
    library.ping_pong.argtypes = [count, size, count, ctypes.c_double, ctypes.c_void_p]
    library.move_streams.argtypes = [ctypes.c_void_p, ctypes.c_void_p, count, pointer, count]
    for name in ("copy_memory", "copy_blocks", "pull_memory", "pull_blocks"):
        getattr(library, name).restype = ctypes.c_double
    library.ping_pong.restype = library.move_streams.restype = ctypes.c_double
    return library


def seconds(found: float) -> float:
    """A result of a limit; raises OSError for a refusal."""
    if found < 0:
        raise OSError(int(-found), os.strerror(int(-found)))
    return found


def ping_pong(library: Any, how: int, size: int, times: int, pause_s: float = 0.0) -> list[float]:
    """The seconds of each of `times` round trips."""
    samples = (ctypes.c_double * times)()
    seconds(library.ping_pong(how, size, times, pause_s, samples))
    return list(samples)


def move_streams(
    library: Any, sockets: Sequence[Any], shares: Sequence[int], address: int, out: bool
) -> float:
    """Sends or receives shares[i] bytes over sockets[i], all at once; the seconds it took."""
    fds = (ctypes.c_int * len(sockets))(*(s.fileno() for s in sockets))
    sizes = (ctypes.c_size_t * len(shares))(*shares)
    return seconds(library.move_streams(fds, sizes, len(sockets), address, int(out)))
