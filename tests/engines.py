"""Stage: tests. A real engine with its control plane, below the tensor API; peers meet over files.

Used by tests of peers and networks, in their child processes. What always holds: the engine is
closed at the end of the block.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from torch_tent import _engine
from torch_tent.card import Card
from torch_tent.rendezvous import ControlPlane
from torch_tent.settings import Settings

WAIT_S = 20.0


class Node:
    """One engine. `folder` is where cards are exchanged."""

    def __init__(self, folder: str, rank: int, settings: Settings) -> None:
        self._folder = Path(folder)
        self.engine = _engine.Engine(settings.for_engine())
        try:
            self.control = ControlPlane(self.engine, settings, name=f"rank {rank}")
        except BaseException:
            self.engine.close()
            raise
        self.say(f"card-{rank}", self.control.card().encode())

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()
        self.control.close()

    def meet(self, rank: int) -> int:
        """The engine's peer id of another rank."""
        return self.control.peer(Card.decode(self.hear(f"card-{rank}")))

    def say(self, name: str, data: bytes = b"") -> None:
        say(self._folder, name, data)

    def hear(self, name: str) -> bytes:
        return hear(self._folder, name)

    def send(self, peer: int, data: np.ndarray[Any, Any], tag: int = 0, **options: Any) -> Any:
        layout = _engine.Layout.contiguous(data.ctypes.data, data.nbytes)
        return self.engine.send(peer, 0, tag, 0, layout, options)

    def recv(self, peer: int, data: np.ndarray[Any, Any], tag: int = 0, **options: Any) -> Any:
        layout = _engine.Layout.contiguous(data.ctypes.data, data.nbytes)
        return self.engine.recv(peer, 0, tag, 0, layout, options)


def say(folder: Path, name: str, data: bytes = b"") -> None:
    """Leaves a message for the other processes."""
    fresh = folder / f"{name}.new"
    fresh.write_bytes(data)
    fresh.rename(folder / name)


def hear(folder: Path, name: str) -> bytes:
    """The message of this name, as soon as it is there."""
    deadline = time.monotonic() + WAIT_S
    while not (folder / name).exists():
        assert time.monotonic() < deadline, f"nobody said {name}"
        time.sleep(0.002)
    return (folder / name).read_bytes()


def ended(operation: Any) -> str:
    """Waits for a transfer; what went wrong, "" for nothing."""
    assert operation.wait(WAIT_S), "a transfer did not end"
    code, text, _ = operation.status()
    return f"{code}: {text}" if code else ""
