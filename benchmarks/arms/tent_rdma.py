"""Stage: benchmarks, in a player. The engine alone on RDMA rails: no torch, whose import takes half
a minute on an emulated processor, and no control plane, but for the few lines that join two ends.

Rank 0 has the first device of each rail and dials, rank 1 the second. A rail that went down is
dialed again until it works.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np

from .base import Arm, Idle, Missing, Probe, Steps, keep_going
from .flow import TracedFlow

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from torch_tent import __version__, _engine
from torch_tent.rdma_ports import rdma_ports

GREET_S = 1.0
REDIAL_S = 0.05
WAIT_S = 60.0


class Ending:
    """A transfer that raises where it fails."""

    def __init__(self, operation: Any) -> None:
        self._operation = operation

    def wait(self) -> None:
        """Until it has ended."""
        if not self._operation.wait(WAIT_S):
            raise RuntimeError(f"a transfer has not ended after {WAIT_S:g} s")
        if self._operation.failed:
            raise RuntimeError(str(self._operation.status()))


class Rails:
    """This end of the rails, and the thread that joins them: once, and again when one is down."""

    def __init__(self, engine: Any, peer: int, devices: list[str], talk: Connection, dials: bool):
        self._engine = engine
        self._peer = peer
        self._devices = devices
        self._talk = talk
        self._dials = dials
        self._links: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._gids = {port.device: port.gid.index for port in rdma_ports() if port.gid}
        work = self._dial_for_ever if dials else self._answer_for_ever
        threading.Thread(target=work, daemon=True).start()

    def all_up(self) -> bool:
        """Whether every rail has a link."""
        return len(self._links) == len(self._devices)

    def _dial_for_ever(self) -> None:
        while True:
            for place in range(len(self._devices)):
                if place not in self._links:
                    self._dial(place)
            try:
                events = self._engine.next_events(REDIAL_S)
            except RuntimeError:
                return  # The engine is closed.
            for event in events:
                if event[0] == "down":
                    gone = [place for place, link in self._links.items() if link == event[2]]
                    for place in gone:
                        del self._links[place]

    def _dial(self, place: int) -> None:
        link = next(self._numbers)
        try:
            own = self._engine.rdma_open(link, self._devices[place], 1, self._gid(place))
        except RuntimeError:
            return  # Its port is down.
        self._talk.send((place, link, own))
        theirs = self._talk.recv()
        try:
            if theirs:
                self._engine.rdma_join(link, theirs, True)
        except RuntimeError:
            theirs = b""
        self._settle(place, link, bool(theirs))

    def _answer_for_ever(self) -> None:
        while True:
            try:
                place, link, theirs = self._talk.recv()
            except (EOFError, OSError):
                return
            try:
                own = self._engine.rdma_open(link, self._devices[place], 1, self._gid(place))
                self._engine.rdma_join(link, theirs, False)
            except RuntimeError:
                own = b""
            self._talk.send(own)
            self._settle(place, link, bool(own))

    def _settle(self, place: int, link: int, joined: bool) -> None:
        """The link is added where both ends were greeted, else dropped."""
        good = joined and self._greeted(link)
        self._talk.send(good)
        good = bool(self._talk.recv()) and good
        if not good:
            self._engine.rdma_drop(link)
            return
        rail = f"rdma {self._devices[place]}"
        dialed = self._dials
        self._engine.add_link(self._peer, link, "rdma", rail, [], dialed, 0, 0.0)
        self._links[place] = link

    def _greeted(self, link: int) -> bool:
        try:
            deadline = time.monotonic() + GREET_S
            while not self._engine.rdma_greeted(link):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.0005)
        except RuntimeError:
            return False
        return True

    def _gid(self, place: int) -> int:
        return self._gids[self._devices[place]]


class TentRdmaArm(Arm):
    """`options["rails"]`: (rank 0's device, rank 1's device) of each rail."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        if not hasattr(_engine.Engine, "rdma_open"):
            raise Missing("this engine has no RDMA rails")
        self.engine = _engine.Engine({"rdma": True, "peer_timeout_s": 60.0})
        peer = self.engine.add_peer(f"rank {1 - seat.rank}")
        self.peer = peer
        door = str(seat.folder / "rails")
        listener = Listener(door, "AF_UNIX") if seat.rank == 1 else None
        seat.exchange(None)  # The door is open.
        talk = listener.accept() if listener is not None else Client(door, "AF_UNIX")
        devices = [pair[seat.rank] for pair in seat.options["rails"]]
        rails = Rails(self.engine, peer, devices, talk, dials=seat.rank == 0)
        deadline = time.monotonic() + WAIT_S
        while not rails.all_up():
            if time.monotonic() > deadline:
                raise Missing("the rails cannot be joined")
            time.sleep(0.01)

    def version(self) -> str:
        """The package's."""
        return f"torch_tent {__version__}, engine alone"

    def offer_write(self, case: dict[str, Any]) -> Probe:
        """A write into rank 1's segment; `depth`: that many on the way at a time."""
        return self._one_sided(case, write=True)

    def offer_read(self, case: dict[str, Any]) -> Probe:
        """A read from rank 1's segment; `depth` as for write."""
        return self._one_sided(case, write=False)

    def offer_flow(self, case: dict[str, Any]) -> Probe:
        """Writes, two at a time, with the slice trace."""
        return TracedFlow(self, self._one_sided(case, write=True), case, self.engine)

    def _one_sided(self, case: dict[str, Any], write: bool) -> Probe:
        memory: np.ndarray[Any, Any] = self.buffer(case)
        own = _engine.Layout.contiguous(memory.ctypes.data, memory.nbytes)
        there = _engine.Layout.contiguous(0, memory.nbytes)
        target, close = (0, 0), None
        if self.seat.rank == 1:
            target = self.engine.register([(memory.ctypes.data, memory.nbytes, 0)], True, True, 0)
            close = lambda: self.engine.close_segment(target[0])  # noqa: E731
        segment, key = self.seat.exchange(target)[1]
        sends = write == (self.seat.rank == 0)
        source, landing = (memory, None) if sends else (None, memory)
        if self.seat.rank == 1:
            return Idle(source, landing, close)

        def begin() -> Ending:
            if write:
                return Ending(self.engine.write(self.peer, own, segment, key, 0, there, None, {}))
            return Ending(self.engine.read(self.peer, own, segment, key, 0, there, {}))

        probe = Steps(lambda: begin().wait(), source, landing, True)
        probe.begin = begin
        if case.get("depth"):
            keep_going(probe, case["depth"])
        return probe

    def offer_message_pingpong(self, case: dict[str, Any]) -> Probe:
        """Half a round trip of send and recv, each waited for."""
        return PingPong(self, self.buffer(case))

    def close(self) -> None:
        """Says bye."""
        self.engine.close()


class PingPong(Probe):
    """Messages back and forth; a time is half of a round trip, as ib_write_lat counts."""

    def __init__(self, arm: TentRdmaArm, memory: np.ndarray[Any, Any]) -> None:
        super().__init__(memory, memory)
        self._engine, self._peer, self._first = arm.engine, arm.peer, arm.seat.rank == 0
        self._own = _engine.Layout.contiguous(memory.ctypes.data, memory.nbytes)

    def run(self, times: int) -> dict[str, Any]:
        """Rank 0 begins."""
        begin = time.monotonic()
        for turn in range(2 * times):
            if (turn % 2 == 0) == self._first:
                operation = self._engine.send(self._peer, 1, 1, 0, self._own, {})
            else:
                operation = self._engine.recv(self._peer, 1, 1, 0, self._own, {})
            Ending(operation).wait()
        return {"seconds": (time.monotonic() - begin) / 2}


ARM = TentRdmaArm
