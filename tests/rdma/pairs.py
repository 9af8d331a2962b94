"""Stage: tests, in the virtual machine. Two engines in one process, joined by RDMA links, without a
control plane, and without torch, whose import takes half a minute there.

`near` has the a-sides of the rails, `far` the b-sides. What always holds: nothing but RDMA joins
them unless a test asks for it, so that whatever arrives came over it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.engine_pairs import layout, tcp_ends
from tests.rdma import wires
from torch_tent import _engine
from torch_tent.rdma_ports import rdma_ports

KIB, MIB = 1 << 10, 1 << 20
WAIT_S = 120.0  # The processor is emulated, and may be shared: an end, not a measure.
GREET_S = 10.0
_links = itertools.count(7001)

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Pair:
    """The two engines. `links` has the number of each rail's latest link."""

    def __init__(self, rails: int = 2, **settings: Any) -> None:
        settings = {"rdma": True, "peer_timeout_s": 120.0, **settings}
        self.near, self.far = _engine.Engine(settings), _engine.Engine(settings)
        self.far_of_near, self.near_of_far = self.near.add_peer("far"), self.far.add_peer("near")
        self.gids = {p.device: p.gid.index for p in rdma_ports() if p.gid is not None}
        self.links: dict[int, int] = {}
        for rail in range(rails):
            self.join(rail)

    def join(self, rail: int) -> None:
        """A new link on a rail. Raises RuntimeError where the way does not work."""
        link = next(_links)
        devices = (f"rxe{rail}a", f"rxe{rail}b")
        both = (self.near, self.far)
        ends = [
            engine.rdma_open(link, device, 1, self.gids[device])
            for engine, device in zip(both, devices, strict=True)
        ]
        try:
            self.far.rdma_join(link, ends[0], False)  # First: the dialer greets at once.
            self.near.rdma_join(link, ends[1], True)
            deadline = time.monotonic() + GREET_S
            # Both are asked each time: either may tell that its end has failed.
            while {engine.rdma_greeted(link) for engine in both} != {True}:
                if time.monotonic() > deadline:
                    raise RuntimeError("no greeting came")
                time.sleep(0.001)
        except RuntimeError:
            for engine in both:
                engine.rdma_drop(link)
            raise
        peers = (self.far_of_near, self.near_of_far)
        for engine, peer, dialed in zip(both, peers, (True, False), strict=True):
            engine.add_link(peer, link, "rdma", f"rdma {rail}", [], dialed, 0, 0.0)
        self.links[rail] = link

    def join_tcp(self, rail: int) -> None:
        """A link over the loopback interface beside the RDMA links."""
        link = next(_links)
        left, right = tcp_ends()
        self.near.add_link(self.far_of_near, link, "tcp", f"tcp {rail}", left, True, 0, 0.0)
        self.far.add_link(self.near_of_far, link, "tcp", f"tcp {rail}", right, False, 0, 0.0)

    def rejoin(self, rail: int) -> None:
        """Tries again until the rail has a link."""

        def joined() -> bool:
            try:
                self.join(rail)
            except RuntimeError:
                return False
            return True

        wait_for(joined, f"rail {rail} to come back")

    def write(self, source: Bytes, target: tuple[int, int], **options: Any) -> _engine.Operation:
        """All of `source` into a segment of far's, given as (segment, key)."""
        where = _engine.Layout.contiguous(0, source.nbytes)
        peer, own = self.far_of_near, layout(source)
        return self.near.write(peer, own, *target, 0, where, None, options)

    def read(self, target: tuple[int, int], landing: Bytes) -> _engine.Operation:
        """As many bytes of far's segment into `landing`."""
        where = _engine.Layout.contiguous(0, landing.nbytes)
        return self.near.read(self.far_of_near, layout(landing), *target, 0, where, {})

    def carried(self) -> dict[int, int]:
        """Bytes that have left near's side of each rail, as the wires count them."""
        return {rail: wires.sent_bytes(f"rail{rail}a") for rail in self.links}

    def close(self) -> None:
        self.near.close()
        self.far.close()


@contextmanager
def segment(engine: _engine.Engine, memory: Bytes, write: bool) -> Iterator[tuple[int, int]]:
    """The memory as a segment of the engine; closed at the end."""
    found = engine.register([(memory.ctypes.data, memory.nbytes, 0)], True, write, 0)
    yield found
    engine.close_segment(found[0])


def well(operation: _engine.Operation) -> bool:
    """Whether it ends with success."""
    return operation.wait(WAIT_S) and operation.status() == (0, "", "")


def wait_for(done: Callable[[], bool], what: str, limit_s: float = WAIT_S) -> None:
    """Asks again and again."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.002)
