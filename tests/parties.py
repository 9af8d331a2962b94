"""Stage: tests. Engines with their control planes, but without a data plane.

Used by the tests of the control plane. What always holds: when a test ends,
every party is closed, and no thread and no socket of theirs is left.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fake_engine import FakeEngine, FakeNative
from torch_tent.card import Card
from torch_tent.rendezvous import ControlPlane
from torch_tent.settings import Settings

SHM, CMA, TCP = 1, 2, 4
TCP_ONLY = Settings(transports=("tcp",))


class Party:
    """An engine with its control plane."""

    def __init__(self, settings: Settings, native: FakeNative | None = None, **more: Any) -> None:
        self.engine = FakeEngine()
        self.native = native or FakeNative()
        try:
            self.control = ControlPlane(self.engine, settings, native=self.native, **more)
        except BaseException:
            self.engine.let_go()
            raise

    def card(self) -> Card:
        return Card.decode(self.control.card().encode())

    def call(self, other: Party, mask: int = 0xFF) -> int:
        peer = self.control.peer(other.card())
        self.engine.dial(peer, mask)
        return peer

    def close(self) -> None:
        self.engine.close()
        self.control.close()


def parties() -> Iterator[Any]:
    """The fixture `party`: a function that makes one, with the arguments of Party."""
    before = open_fds()
    made: list[Party] = []

    def make(settings: Settings | None = None, *args: Any, **more: Any) -> Party:
        made.append(Party(settings or Settings(), *args, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.engine.let_go()
    assert [t.name for t in threading.enumerate() if t.name.startswith("tent-")] == []
    made.clear()
    left = {fd: what for fd, what in open_fds().items() if before.get(fd) != what}
    assert {fd: what for fd, what in left.items() if what.startswith(("socket", "/memfd"))} == {}


def open_fds() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except OSError:
            continue
    return found


def rails_of(*numbers: int) -> Settings:
    return Settings(transports=("tcp",), rails=tuple(f"127.0.0.{n}" for n in numbers))


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as sock:
        return int(sock.getsockname()[1])


def wait_until(condition: Any, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
