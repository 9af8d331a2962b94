"""Stage: tests. Transports between processes: exact bytes, the death of a peer in every phase, and
what a TCP connection does when it is closed, torn or fed byte by byte.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract_module import contract
from tests.processes import Processes
from tests.transport_links import (
    CONTROL,
    FLOW,
    KINDS,
    LINK,
    LOCAL,
    MIB,
    SLICE,
    Shared,
    address,
    header,
    post_control,
    post_slice,
    random_bytes,
    tcp_sockets,
    transport_name,
)

pytestmark = pytest.mark.timeout(300)  # the first test compiles the module

SEED, BYTES = 11, 24 * MIB
NOTICED_S = 0.1
PR_SET_PDEATHSIG = 1


def listen(kind: str, folder: Path) -> socket.socket:
    """A listener for one peer: TCP on the loopback interface, or a Unix socket in `folder`."""
    if kind.startswith("tcp"):
        family, host = (socket.AF_INET6, "::1") if kind == "tcp6" else (socket.AF_INET, "127.0.0.1")
        return socket.create_server((host, 0), family=family)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "socket"))
    listener.listen()
    return listener


def accept(side: Any, kind: str, listener: socket.socket) -> None:
    """Our half of a handshake, then connects the side."""
    peer = listener.accept()[0]
    fds: list[int] = []
    if not kind.startswith("tcp"):
        fds = list(socket.recv_fds(peer, 1, 1)[1])  # exactly what was sent, and no byte more
    assert side.connect(LINK, [*fds, peer.detach()], False, 0) == ""


def dial(side: Any, kind: str, name: Any) -> None:
    """The child's half."""
    if kind.startswith("tcp"):
        peer = socket.create_connection(name)
        assert side.connect(LINK, [peer.detach()], True, 0) == ""
        return
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(name)
    ours, theirs = contract().open_local_channel()
    socket.send_fds(peer, [b"x"], theirs)
    for fd in theirs:
        os.close(fd)
    assert side.connect(LINK, [*ours, peer.detach()], True, 0) == ""


def memory(side: Any, kind: str, nbytes: int) -> Any:
    if kind != "shm":
        return np.zeros(nbytes, np.uint8)
    shared = Shared(nbytes)
    assert side.register_region(1, address(shared.array), nbytes, shared.fd) == ""
    return shared.array


def echo_child(rank: int, nprocs: int, kind: str, name: Any) -> int:
    """Sends BYTES, receives as many, returns how many of these were wrong."""
    side = contract().Side(transport_name(kind))
    source, back = memory(side, kind, BYTES), np.zeros(BYTES, np.uint8)
    source[:] = random_bytes(BYTES, random.Random(SEED))
    side.source_line(FLOW, [(address(source), BYTES)])
    side.landing_line(FLOW + 1, [(address(back), BYTES)])
    dial(side, kind, name)
    for index in range(6):
        post_slice(side, index + 1, index * BYTES // 6, BYTES // 6)
    assert contract().drive([side], 6, 20)
    while not any(event.what == "frame" for event in side.take_events()):
        side.poll()
    wrong = int(np.count_nonzero(back != source))
    post_control(side, 7, b"done")
    contract().settle([side])
    return wrong


def sending_child(rank: int, nprocs: int, kind: str, name: Any, slices: int, forks: bool) -> None:
    """Posts `slices`, says so, and polls until it is killed."""
    side = contract().Side(transport_name(kind))
    source = memory(side, kind, BYTES)
    source[:] = 1
    side.source_line(FLOW, [(address(source), BYTES)])
    dial(side, kind, name)
    if forks and os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
        time.sleep(1.0)  # holds copies of all descriptors for so long
        os._exit(0)
    side.reply(LINK, header(CONTROL, 1, body_bytes=4), b"back", 1)
    post_control(side, 1, b"here")
    for index in range(slices):
        post_slice(side, index + 2, (index % 6) * BYTES // 6, BYTES // 6)
    while True:
        side.poll()


class Victim:
    """A child that sends, and our side of the link to it."""

    def __init__(self, kind: str, folder: Path, slices: int, forks: bool = False) -> None:
        self.side: Any = contract().Side(transport_name(kind))
        self.destination = np.zeros(BYTES, np.uint8)
        self.side.landing_line(FLOW, [(address(self.destination), BYTES)])
        with listen(kind, folder) as listener:
            name = listener.getsockname()
            name = name if isinstance(name, str) else name[:2]
            self.children = Processes(sending_child, 1, kind, name, slices, forks)
            accept(self.side, kind, listener)
        self.process = os.pidfd_open(self.children.pid(0))
        assert contract().drive([self.side], 1, 20)
        self.side.take_events()

    def kill(self) -> None:
        self.children.send_signal(0, signal.SIGKILL)

    def down(self) -> tuple[Any, float]:
        """Polls until the link is down: (event, how many seconds after the process had ended)."""
        ended = None
        while True:
            self.side.poll()
            heard = [event for event in self.side.take_events() if event.what == "down"]
            if heard:
                return heard[0], 0.0 if ended is None else time.monotonic() - ended
            if ended is None and select.select([self.process], [], [], 0)[0]:
                ended = time.monotonic()

    def close(self) -> None:
        self.children.close()
        self.side.hang_up()
        os.close(self.process)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_exact_between_processes(kind: str, tmp_path: Path) -> None:
    side = contract().Side(transport_name(kind))
    destination = memory(side, kind, BYTES)
    side.landing_line(FLOW, [(address(destination), BYTES)])
    side.source_line(FLOW + 1, [(address(destination), BYTES)])
    with listen(kind, tmp_path) as listener:
        name = listener.getsockname()
        name = name if isinstance(name, str) else name[:2]
        with Processes(echo_child, 1, kind, name) as children:
            accept(side, kind, listener)
            assert contract().drive([side], 12, 20)
            assert np.array_equal(destination, random_bytes(BYTES, random.Random(SEED)))
            for index in range(6):
                post_slice(side, index + 1, index * BYTES // 6, BYTES // 6, FLOW + 1)
            post_control(side, 7, b"all sent")
            assert contract().drive([side], 13, 20)
            contract().settle([side])
            assert children.results() == [0]
    side.hang_up()


# ---- death ---------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def noticed(kind: str, folder: Path, die: Callable[[Victim], None], **how: Any) -> None:
    """`die` kills a victim in its phase; the link must be down soon after, and say so.

    Another process may hold the processors for longer than that: one of three times counts.
    """
    seconds = []
    for attempt in range(3):
        (folder / str(attempt)).mkdir()
        victim = Victim(kind, folder / str(attempt), **how)
        die(victim)
        event, late = victim.down()
        before = victim.destination.copy()
        contract().settle([victim.side])
        victim.close()
        assert np.array_equal(victim.destination, before)
        assert victim.side.take_events() == []
        if kind in LOCAL:
            assert "ended" in event.text
            assert event.code == 2  # PeerLost: it is known, not guessed
        if late < NOTICED_S:
            return
        seconds.append(late)
    pytest.fail(f"noticed only after {seconds} s")


def test_the_death_of_an_idle_peer_is_noticed(kind: str, tmp_path: Path) -> None:
    noticed(kind, tmp_path, Victim.kill, slices=0)


def test_the_death_of_a_peer_wakes_a_sleeper(kind: str, tmp_path: Path) -> None:
    def die(victim: Victim) -> None:
        while victim.side.sleep(5) != 2:
            victim.side.poll()
        victim.kill()
        assert victim.side.sleep(5000) != 2

    noticed(kind, tmp_path, die, slices=0)


def test_death_in_the_middle_of_a_payload(kind: str, tmp_path: Path) -> None:
    def die(victim: Victim) -> None:
        calls = victim.side.landing_calls
        while victim.side.landing_calls < calls + 20:
            victim.side.poll()
        victim.kill()

    noticed(kind, tmp_path, die, slices=2000)


@pytest.mark.parametrize("kind", LOCAL)
def test_death_is_noticed_though_a_child_holds_the_socket(kind: str, tmp_path: Path) -> None:
    noticed(kind, tmp_path, Victim.kill, slices=0, forks=True)
    time.sleep(1.2)  # the grandchild ends by itself


def test_a_stopped_peer_is_no_fault(kind: str, tmp_path: Path) -> None:
    """Neither blocks us nor is taken for dead; its link goes on when it does."""
    victim = Victim(kind, tmp_path, 0)
    victim.children.send_signal(0, signal.SIGSTOP)
    started = time.monotonic()
    post_control(victim.side, 1, bytes(8 * MIB))
    contract().settle([victim.side])
    assert time.monotonic() - started < 5
    assert victim.side.take_events() == []
    victim.children.send_signal(0, signal.SIGCONT)
    assert contract().drive([victim.side], 1, 20)
    assert [event.body for event in victim.side.take_events()] == [b"back"]
    victim.close()


# ---- TCP -----------------------------------------------------------------------------------------


@pytest.fixture
def raw() -> Iterator[tuple[Any, socket.socket]]:
    """A side, and a bare socket at the other end of its link."""
    side: Any = contract().Side("tcp")
    dialed, accepted = tcp_sockets("tcp4")
    assert side.connect(LINK, [dialed.detach()], True, 0) == ""
    accepted.settimeout(10)
    yield side, accepted
    accepted.close()
    side.hang_up()


def test_a_stream_that_comes_byte_by_byte_is_the_same_stream(
    raw: tuple[Any, socket.socket],
) -> None:
    side, peer = raw
    destination = np.zeros(300, np.uint8)
    side.landing_line(FLOW, [(address(destination), 300)])
    payload = random_bytes(300, random.Random(2)).tobytes()
    stream = header(CONTROL, 1, body_bytes=3) + b"abc"
    stream += header(SLICE, 2, FLOW, 0, 300) + payload + b"TNOK"
    stream += header(CONTROL, 3, body_bytes=3) + b"xyz"
    for at in range(len(stream)):
        peer.sendall(stream[at : at + 1])
        if at % 7 == 0:
            side.poll()
    assert contract().drive([side], 4, 10)
    heard = [(event.what, event.sequence) for event in side.take_events()]
    assert heard == [("frame", 1), ("slice", 2), ("landed", 2), ("frame", 3)]
    assert destination.tobytes() == payload


def test_a_wrong_ending_of_a_payload_closes_the_link(raw: tuple[Any, socket.socket]) -> None:
    side, peer = raw
    destination = np.zeros(10, np.uint8)
    side.landing_line(FLOW, [(address(destination), 10)])
    peer.sendall(header(SLICE, 1, FLOW, 0, 10) + bytes(10) + b"what")
    assert contract().drive([side], 2, 10)
    assert [event.what for event in side.take_events()] == ["slice", "down"]


@pytest.mark.parametrize("copied", [False, True])
def test_close_resets_and_queued_bytes_die(copied: bool) -> None:
    """Also while a copy of the descriptor is open elsewhere, as in a forked child."""
    side: Any = contract().Side("tcp")
    dialed, accepted = tcp_sockets("tcp4")
    copy = os.dup(dialed.fileno()) if copied else -1
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    accepted.settimeout(10)
    assert side.connect(LINK, [dialed.detach()], True, 0) == ""
    post_control(side, 1, bytes(16 * MIB))
    side.close(LINK)
    received, ending = 0, "orderly"
    try:
        while chunk := accepted.recv(1 << 20):
            received += len(chunk)
    except ConnectionResetError:
        ending = "reset"
    assert ending == "reset"
    assert received < 15 * MIB
    accepted.close()
    if copied:
        os.close(copy)


def test_a_slow_reader_holds_little_in_the_kernel(raw: tuple[Any, socket.socket]) -> None:
    """Bytes in the kernel can go no other way, so few may wait there beyond what is on the wire."""
    side, peer = raw
    source = np.ones(64 * MIB, np.uint8)
    side.source_line(FLOW, [(address(source), source.nbytes)])
    for index in range(64):
        post_slice(side, index + 1, index * MIB, MIB)
    contract().settle([side])
    side.end_source(FLOW, 0)  # what is not in the kernel by now will not be sent
    contract().settle([side])
    payload = 0
    peer.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while chunk := peer.recv(1 << 20):
            payload += chunk.count(b"\x01")
            contract().settle([side])
    assert 0 < payload < 2 * MIB
