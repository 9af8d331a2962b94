"""Stage: tests, soak. Bytes that anybody can compute from a seed and a position; and memory that
must not change any more.

Used by all threads of a member. What always holds: two seeds, or two positions less than PERIOD
apart, give bytes that differ nearly everywhere.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import numpy.typing as npt
import torch

Bytes = npt.NDArray[np.uint8]

PERIOD = 65_521  # a prime: no page, block or slice is a multiple of it
LONGEST = 16 << 20
CANARY = 0xA5
_LINE: Bytes = np.resize(
    np.random.default_rng(1).integers(0, 256, PERIOD, dtype=np.uint8), LONGEST + PERIOD
)


def pattern(seed: int, start: int, size: int) -> Bytes:
    """`size` bytes (at most LONGEST) of the endless line of `seed`, from `start`."""
    begin = (start + seed * 7919) % PERIOD
    return _LINE[begin : begin + size] ^ np.uint8(seed * 31 & 0xFF)


def first_difference(found: Bytes, wanted: Bytes) -> str:
    """Where two lines of bytes differ, in words; "" when they are equal."""
    if np.array_equal(found, wanted):
        return ""
    places = np.flatnonzero(found != wanted)
    return (
        f"{places.size} of {found.size} bytes are wrong, from {places[0]} to {places[-1]}: "
        f"{found[places[0]]:#x} instead of {wanted[places[0]]:#x}"
    )


class Quarantine:
    """Memory whose transfers have ended: filled with CANARY, and looked at for some seconds."""

    SECONDS, BYTES_MAX = 3.0, 96 << 20

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[float, str, torch.Tensor]] = deque()
        self._bytes = 0
        self.checked = 0

    def add(self, what: str, memory: torch.Tensor) -> None:
        """From now on nobody may write this memory (uint8, of any strides)."""
        memory.fill_(CANARY)
        with self._lock:
            self._kept.append((time.monotonic() + self.SECONDS, what, memory))
            self._bytes += memory.numel()

    def check(self, everything: bool = False) -> str:
        """What was written although it must not be, in words; "" when nothing was."""
        with self._lock:
            while self._kept and (
                everything or self._bytes > self.BYTES_MAX or self._kept[0][0] < time.monotonic()
            ):
                _, what, memory = self._kept.popleft()
                self._bytes -= memory.numel()
                self.checked += 1
                stray = int((memory != CANARY).sum())
                if stray:
                    return f"{stray} stray bytes in {memory.numel()} of {what} after its end"
        return ""
