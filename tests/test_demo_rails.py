"""Stage: tests. The demo's relays: what they pass on, how fast, and how they break and heal.

Runs against real sockets on loopback. What is waited for is a byte or an end that must come; what
must not come is looked for only after something later has come, or after a bounded silence.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from torch_tent.demo.rails import Relays

HOST = "127.0.0.1"
PAIR = (HOST, HOST)
FAST = 200e6
PATIENCE_S = 10.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(PATIENCE_S)
        yield server


@contextmanager
def connected(
    relays: Relays, listener: socket.socket, rail: int = 0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection through the relay: the dialer's end and the listener's."""
    with socket.create_connection(relays.doors("far")[rail], timeout=PATIENCE_S) as near:
        far, _ = listener.accept()
        far.settimeout(PATIENCE_S)
        with far:
            yield near, far


def receive(sock: socket.socket, wanted: int) -> bytes:
    found = bytearray()
    while len(found) < wanted:
        part = sock.recv(wanted - len(found))
        assert part, f"ended after {len(found)} of {wanted} bytes"
        found += part
    return bytes(found)


def some(
    listener: socket.socket, bytes_per_s: float = FAST, ends: Sequence[tuple[str, str]] = (PAIR,)
) -> Relays:
    """Relays whose far sides lead to the listener."""
    relays = Relays(ends, bytes_per_s)
    relays.lead("far", [listener.getsockname()] * len(ends))
    return relays


def test_bytes_pass_both_ways_unchanged(listener: socket.socket, seed: int) -> None:
    random.seed(seed)
    there, back = random.randbytes(3_000_000), random.randbytes(1_000_000)
    with some(listener) as relays, connected(relays, listener) as (near, far):
        senders = [
            threading.Thread(target=sock.sendall, args=(content,))
            for sock, content in ((near, there), (far, back))
        ]
        for sender in senders:
            sender.start()
        assert receive(far, len(there)) == there
        assert receive(near, len(back)) == back
        for sender in senders:
            sender.join(PATIENCE_S)
    moved = relays.moved(0)
    assert sum(count for _, count in moved) == relays.total(0) == len(there)
    assert moved == sorted(moved)


def test_the_end_of_one_direction_passes_and_the_other_goes_on(listener: socket.socket) -> None:
    with some(listener) as relays, connected(relays, listener) as (near, far):
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert receive(far, 8) == b"question"
        assert far.recv(1) == b""
        far.sendall(b"answer")
        far.close()
        assert receive(near, 6) == b"answer"
        assert near.recv(1) == b""


def test_a_rail_is_not_faster_than_its_speed(listener: socket.socket) -> None:
    """Two connections share it. Only the least time is checked: a busy machine may be slower."""
    size, speed = 300_000, 2e6
    with (
        some(listener, speed) as relays,
        connected(relays, listener) as (near, far),
        connected(relays, listener) as (near_too, far_too),
    ):
        began = time.monotonic()
        senders = [
            threading.Thread(target=sock.sendall, args=(bytes(size),)) for sock in (near, near_too)
        ]
        for sender in senders:
            sender.start()
        receive(far, size)
        receive(far_too, size)
        took = time.monotonic() - began
        for sender in senders:
            sender.join(PATIENCE_S)
    assert took >= 0.9 * 2 * size / speed


def test_slow_and_healed(listener: socket.socket) -> None:
    with some(listener, 20e6) as relays, connected(relays, listener) as (near, far):
        relays.slow(0, 100)
        began = time.monotonic()
        near.sendall(bytes(100_000))
        receive(far, 50_000)
        assert time.monotonic() - began >= 0.2  # 50 kB at 200 kB/s, less what had been saved up
        relays.heal(0)
        receive(far, 50_000)
        began = time.monotonic()
        near.sendall(bytes(500_000))
        receive(far, 500_000)
        assert time.monotonic() - began < 2.0  # at 200 kB/s it would be 2.5


def test_cut_resets_both_ends_and_refuses_until_healed(listener: socket.socket) -> None:
    with some(listener) as relays:
        with connected(relays, listener) as (near, far):
            near.sendall(b"before")
            receive(far, 6)
            before = time.monotonic_ns()
            moment = relays.cut(0)
            assert before <= moment <= time.monotonic_ns()
            for end in (near, far):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(relays.doors("far")[0], timeout=PATIENCE_S)
        relays.heal(0)
        with connected(relays, listener) as (near, far):
            near.sendall(b"after")
            assert receive(far, 5) == b"after"


def test_cut_leaves_the_other_rails_alsome(listener: socket.socket) -> None:
    with some(listener, ends=[PAIR, ("127.0.0.3", "127.0.0.2")]) as relays:
        assert [host for host, _ in relays.doors("far")] == [HOST, "127.0.0.2"]
        assert [host for host, _ in relays.doors("near")] == [HOST, "127.0.0.3"]
        with connected(relays, listener, rail=1) as (near, far):
            relays.cut(0)
            near.sendall(b"still here")
            assert receive(far, 10) == b"still here"


def test_a_drop_says_nothing_and_healed_it_delivers_late(listener: socket.socket) -> None:
    with some(listener) as relays, connected(relays, listener) as (near, far):
        relays.drop(0)
        near.sendall(b"late")
        far.settimeout(0.1)
        with pytest.raises(TimeoutError):
            far.recv(1)
        # Who connects now is not refused, and nobody hears of him.
        with socket.create_connection(relays.doors("far")[0], timeout=PATIENCE_S):
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listener.accept()
        relays.heal(0)
        far.settimeout(PATIENCE_S)
        assert receive(far, 4) == b"late"


def test_a_target_that_refuses_ends_the_connection(listener: socket.socket) -> None:
    with some(listener) as relays:
        listener.close()
        with (
            pytest.raises(ConnectionResetError),  # By connect itself, when the relay is quick.
            socket.create_connection(relays.doors("far")[0], timeout=PATIENCE_S) as near,
        ):
            near.recv(1)


def test_whoever_connects_comes_from_the_other_side(listener: socket.socket) -> None:
    """And only what goes to the far side is counted, whichever side has connected."""
    with Relays([("127.0.0.8", "127.0.0.9")], FAST) as relays:
        relays.lead("near", [listener.getsockname()])
        with socket.create_connection(relays.doors("near")[0], timeout=PATIENCE_S) as guest:
            host, (name, _) = listener.accept()
            with host:
                host.settimeout(PATIENCE_S)
                guest.sendall(bytes(1000))
                receive(host, 1000)
                host.sendall(bytes(10))
                receive(guest, 10)
    assert name == "127.0.0.9"
    assert relays.total(0) == 10


def test_a_door_that_leads_nowhere_resets(listener: socket.socket) -> None:
    with (
        some(listener) as relays,
        pytest.raises(ConnectionResetError),
        socket.create_connection(relays.doors("near")[0], timeout=PATIENCE_S) as guest,
    ):
        guest.recv(1)


def test_close_ends_connections_and_commands(listener: socket.socket) -> None:
    relays = some(listener)
    with connected(relays, listener) as (near, _):
        relays.close()
        relays.close()
        with pytest.raises(ConnectionResetError):
            near.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(relays.doors("far")[0], timeout=PATIENCE_S)
    with pytest.raises(RuntimeError, match="do not run any more"):
        relays.cut(0)


def test_an_address_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        Relays([PAIR, (HOST, "192.0.2.1")], FAST)
