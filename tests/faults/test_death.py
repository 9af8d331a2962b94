"""P5: a peer that dies or stops never makes a call hang; P1 where the peer cannot be reached.

The peer is a process of its own that obeys this one over a Unix socket; it is killed (SIGKILL) or
stopped (SIGSTOP) in one phase. The bounds here tell an error from a hang, no more.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.faults.rig import CANARY, MIB, pattern
from tests.processes import Processes
from torch_tent.ticket import Ticket

SIZE = 256 * MIB
SOON_S = 2.0  # what is promised is 100 ms on one host
TRANSPORTS = {"same host": ("shm", "cma"), "tcp": ("tcp",)}


def engine(transports: tuple[str, ...], **settings: Any) -> closing[tent.Engine]:
    return closing(tent.Engine(tent.Settings(transports=transports, **settings)))


def obey(rank: int, nprocs: int, address: str, transports: tuple[str, ...], port: int) -> None:
    """The peer: exports memory, and writes to or reads from ours over and over when told to."""
    memory = pattern(SIZE, 5)
    chosen: dict[str, Any] = {"listen_port": port} if port else {}
    with Client(address) as orders, engine(transports, **chosen) as ours:
        segment = ours.register(memory, access="read-write")
        orders.send(segment.ticket())
        while True:
            order, ticket = orders.recv()
            if order == "end":
                return
            remote = ours.open(ticket)
            orders.send("begun")
            try:
                while not orders.poll():
                    if order == "write":
                        ours.write(memory, remote).wait(20)
                    else:
                        ours.read(remote, memory).wait(20)
            except tent.TentError as error:
                orders.send(type(error).__name__)


class Peer:
    """The obeying process and our connection to it."""

    def __init__(self, folder: Path, transports: tuple[str, ...], port: int = 0) -> None:
        address = str(folder / f"orders-{time.monotonic_ns()}")
        with Listener(address) as listener:
            self.process = Processes(obey, 1, address, transports, port)
            self.orders: Connection = listener.accept()
        assert self.orders.poll(20)
        self.ticket: bytes = self.orders.recv()

    def begin(self, order: str, ticket: bytes) -> None:
        self.orders.send((order, ticket))
        assert self.orders.poll(20)
        assert self.orders.recv() == "begun"

    def signal(self, number: int) -> None:
        self.process.send_signal(0, number)

    def close(self) -> None:
        self.process.close()
        self.orders.close()


@pytest.fixture(params=TRANSPORTS)
def transports(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return TRANSPORTS[request.param]


@pytest.fixture
def peer(tmp_path: Path, transports: tuple[str, ...]) -> Iterator[Peer]:
    found = Peer(tmp_path, transports)
    yield found
    found.close()


def test_an_idle_peer_that_is_killed_is_lost(peer: Peer, transports: tuple[str, ...]) -> None:
    with engine(transports) as ours:
        remote = ours.open(peer.ticket)
        small = torch.zeros(8, dtype=torch.uint8)
        ours.write(small, remote[:8]).wait(20)
        peer.signal(signal.SIGKILL)
        began = time.monotonic()
        while (error := ours.write(small, remote[:8]).exception()) is None:
            assert time.monotonic() < began + SOON_S
        assert isinstance(error, tent.PeerLostError)


@pytest.mark.parametrize("verb", ["write", "read"])
def test_a_peer_killed_during_our_transfer_is_lost_soon(
    peer: Peer, transports: tuple[str, ...], verb: str
) -> None:
    with engine(transports) as ours:
        remote = ours.open(peer.ticket)
        memory = torch.zeros(SIZE, dtype=torch.uint8)
        ours.read(remote[:8]).wait(20)
        transfer = ours.write(memory, remote) if verb == "write" else ours.read(remote, memory)
        peer.signal(signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(tent.PeerLostError):
            transfer.wait(20)
        assert time.monotonic() - began < SOON_S
        memory.fill_(CANARY)
        with pytest.raises(tent.PeerLostError):
            ours.read(remote[:8]).wait(20)
        assert (memory == CANARY).all()


@pytest.mark.parametrize("order", ["write", "read"])
def test_a_peer_killed_during_its_transfer_leaves_our_memory_alone(
    peer: Peer, transports: tuple[str, ...], order: str
) -> None:
    with engine(transports) as ours:
        memory = torch.zeros(SIZE, dtype=torch.uint8)
        segment = ours.register(memory, access="read-write")
        peer.begin(order, segment.ticket())
        peer.signal(signal.SIGKILL)
        began = time.monotonic()
        segment.close()
        assert time.monotonic() - began < SOON_S
        memory.fill_(CANARY)
        while any(rail["up"] for rail in ours.stats()["rails"]):
            assert time.monotonic() < began + 10 * SOON_S
        assert (memory == CANARY).all()


@pytest.mark.parametrize("order", ["write", "read"])
def test_a_stopped_peer_touches_nothing_after_close_when_it_wakes(
    peer: Peer, transports: tuple[str, ...], order: str
) -> None:
    with engine(transports) as ours:
        memory = torch.zeros(SIZE, dtype=torch.uint8)
        segment = ours.register(memory, access="read-write")
        peer.begin(order, segment.ticket())
        if order == "write":
            while not memory[:: 1 << 20].any():
                pass
        peer.signal(signal.SIGSTOP)
        began = time.monotonic()
        segment.close()  # returns although the peer cannot answer
        assert time.monotonic() - began < SOON_S
        memory.fill_(CANARY)
        peer.signal(signal.SIGCONT)
        assert peer.orders.poll(20), "the peer never heard that the segment is closed"
        assert peer.orders.recv() == "AccessError"
        assert (memory == CANARY).all()


def test_a_transfer_to_a_stopped_peer_times_out_and_the_peer_comes_back(
    peer: Peer, transports: tuple[str, ...]
) -> None:
    with engine(transports) as ours:
        remote = ours.open(peer.ticket)
        source = pattern(SIZE, 6)
        ours.write(source[:8], remote[:8]).wait(20)
        peer.signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(tent.TransferTimeout):
            ours.write(source, remote, timeout=0.2).wait(20)
        assert time.monotonic() - began < SOON_S
        peer.signal(signal.SIGCONT)
        ours.write(source, remote).wait(20)
        assert torch.equal(ours.read(remote).wait(20), source)


def test_a_short_stop_is_only_a_pause(peer: Peer, transports: tuple[str, ...]) -> None:
    with engine(transports) as ours:
        remote = ours.open(peer.ticket)
        source = pattern(SIZE, 7)
        ours.write(source[:8], remote[:8]).wait(20)
        transfer = ours.write(source, remote)
        peer.signal(signal.SIGSTOP)
        assert not transfer.done()
        with pytest.raises(tent.TransferTimeout):
            transfer.wait(0.3)
        peer.signal(signal.SIGCONT)
        transfer.wait(20)
        assert torch.equal(ours.read(remote).wait(20), source)


def test_a_silent_peer_is_lost_after_the_peer_timeout(
    peer: Peer, transports: tuple[str, ...]
) -> None:
    with engine(transports, peer_timeout_s=0.5) as ours:
        remote = ours.open(peer.ticket)
        ours.read(remote[:8]).wait(20)
        peer.signal(signal.SIGSTOP)
        with pytest.raises(tent.PeerLostError, match="silent"):
            ours.read(remote).wait(20)


def test_a_restarted_peer_is_a_new_one(tmp_path: Path) -> None:
    first = Peer(tmp_path, ("tcp",))
    port = Ticket.decode(first.ticket).card.addresses[0].port
    second = None
    try:
        with engine(("tcp",)) as ours:
            old = ours.open(first.ticket)
            ours.read(old[:8]).wait(20)
            first.signal(signal.SIGKILL)
            first.close()
            second = Peer(tmp_path, ("tcp",), port)
            with pytest.raises(tent.PeerLostError):
                ours.read(old[:8]).wait(20)
            new = ours.open(second.ticket)
            assert torch.equal(ours.read(new[:8]).wait(20), pattern(SIZE, 5)[:8])
    finally:
        first.close()
        if second:
            second.close()
