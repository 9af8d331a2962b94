"""Stage: tests. Two engines in one process that know each other, as ranks 0 and 1 of a group.

Used by tests of the tensor API, on their own thread. What always holds: both are closed at the end
of the block, whatever happened in it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import HashStore

from torch_tent.engines import Engine
from torch_tent.groups import Group
from torch_tent.settings import Settings
from torch_tent.transfer import Transfer

WAIT_S = 10.0  # Longer than anything here takes; a test that needs it has failed.


@dataclass
class Pair:
    """Rank 0 (`a`) and rank 1 (`b`)."""

    a: Engine
    b: Engine
    group_a: Group
    group_b: Group

    def exchange(self, x: Any, y: Any, **options: Any) -> tuple[Transfer, Transfer]:
        """Sends `x` from a into `y` of b, and waits for both ends."""
        sent = self.a.send(x, 1, group=self.group_a, **options)
        received = self.b.recv(y, 0, group=self.group_b, **options)
        received.wait(WAIT_S)
        sent.wait(WAIT_S)
        return sent, received

    def never_sent(self, bytes_: int = 8) -> Transfer:
        """A receive of b that waits for ever."""
        return self.b.recv(torch.empty(bytes_, dtype=torch.uint8), 0, 999, group=self.group_b)


@contextlib.contextmanager
def two_engines(**settings: Any) -> Iterator[Pair]:
    """Two engines with these settings, and the group that they make."""
    with contextlib.ExitStack() as stack:
        engines = []
        for _ in range(2):
            engines.append(Engine(Settings(**settings)))
            stack.callback(engines[-1].close)
        store = HashStore()
        groups = [engine.join(store, rank, 2) for rank, engine in enumerate(engines)]
        yield Pair(engines[0], engines[1], groups[0], groups[1])


def until(true: Callable[[], Any], seconds: float = WAIT_S) -> None:
    """Waits for something that another thread or process is about to make true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true after {seconds} s"
        time.sleep(0.001)


def noise(count: int, seed: int = 1) -> torch.Tensor:
    """Bytes that look random, the same ones for the same seed."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 128, (count,), dtype=torch.uint8, generator=draw)
