"""Stage: tests. Two engines in one process, joined by real links without any control plane."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torch_tent import _engine

KINDS = ("tcp", "shm", "cma")
WAIT_S = 20.0  # Far beyond what anything here takes, so that a hang becomes a failure.
_links = itertools.count(1)


def tcp_ends() -> tuple[list[int], list[int]]:
    """The descriptors of a connected TCP pair on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialed = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    return [dialed.detach()], [accepted.detach()]


def local_ends() -> tuple[list[int], list[int]]:
    """The descriptors of both ends of a same-host link."""
    ours, theirs = _engine.open_local_channel()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return [*ours, left.detach()], [*theirs, right.detach()]


def ends(kind: str) -> tuple[list[int], list[int]]:
    return tcp_ends() if kind == "tcp" else local_ends()


@dataclass
class Pair:
    """Engines `a` and `b`; `b_of_a` is what a calls b. Links by number, with a's descriptors.

    Engines know addresses only: what is sent and received is kept until both are closed.
    """

    a: _engine.Engine
    b: _engine.Engine
    b_of_a: int
    a_of_b: int
    links: dict[int, list[int]] = field(default_factory=dict)
    _kept: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def join(self, kind: str, rail: str | None = None) -> int:
        """Adds a link and returns its number."""
        link = next(_links)
        left, right = ends(kind)
        self.links[link] = left
        rail = rail or kind
        self.a.add_link(self.b_of_a, link, kind, rail, left, True, os.getpid(), 0.0)
        self.b.add_link(self.a_of_b, link, kind, rail, right, False, os.getpid(), 0.0)
        return link

    def send(self, array: np.ndarray[Any, Any], tag: int = 1, **options: Any) -> _engine.Operation:
        self._kept.append(array)
        return self.a.send(self.b_of_a, 1, tag, 0, layout(array), options)

    def recv(self, array: np.ndarray[Any, Any], tag: int = 1, **options: Any) -> _engine.Operation:
        self._kept.append(array)
        return self.b.recv(self.a_of_b, 1, tag, 0, layout(array), options)

    def forget(self) -> None:
        """What was sent and received is no longer kept."""
        self._kept.clear()

    def close(self) -> None:
        self.a.close()
        self.b.close()


@contextmanager
def pair(kinds: Sequence[str] = ("tcp",), **settings: Any) -> Iterator[Pair]:
    a, b = _engine.Engine(settings), _engine.Engine(settings)
    made = Pair(a, b, a.add_peer("b"), b.add_peer("a"))
    try:
        for kind in kinds:
            made.join(kind)
        yield made
    finally:
        made.close()


def layout(array: np.ndarray[Any, Any]) -> _engine.Layout:
    """The memory of a contiguous array, which the caller keeps."""
    return _engine.Layout.contiguous(array.ctypes.data, array.nbytes)


def noise(count: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


def succeeded(*operations: _engine.Operation) -> bool:
    """Waits for all; True when every one ended well."""
    return all(op.wait(WAIT_S) and op.status() == (0, "", "") for op in operations)


def thread_names() -> list[str]:
    """The engine's threads that this process has."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/comm") as name:
                found.append(name.read().strip())
        except OSError:
            continue  # It has ended meanwhile.
    return sorted(name for name in found if name.startswith("tent-"))
