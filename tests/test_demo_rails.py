"""Stage: tests. The demo's relays: what they pass on, how fast, and how they break and heal.

Runs against real sockets on loopback. What is waited for is a byte or an end that must come; what
must not come is looked for only after something later has come, or after a bounded silence.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from torch_tent.demo.rails import Relays

HOST = "127.0.0.1"
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
    with socket.create_connection(relays.addresses[rail], timeout=PATIENCE_S) as near:
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


def one(listener: socket.socket, bytes_per_s: float = FAST) -> Relays:
    return Relays([HOST], [listener.getsockname()], bytes_per_s)


def test_bytes_pass_both_ways_unchanged(listener: socket.socket, seed: int) -> None:
    random.seed(seed)
    there, back = random.randbytes(3_000_000), random.randbytes(1_000_000)
    with one(listener) as relays, connected(relays, listener) as (near, far):
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
        total = relays.total(0)
    assert sum(count for _, count in moved) == total == len(there)
    assert moved == sorted(moved)


def test_the_end_of_one_direction_passes_and_the_other_goes_on(listener: socket.socket) -> None:
    with one(listener) as relays, connected(relays, listener) as (near, far):
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
        one(listener, speed) as relays,
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
    with one(listener, 20e6) as relays, connected(relays, listener) as (near, far):
        relays.slow(0, 100)
        began = time.monotonic()
        near.sendall(bytes(100_000))
        receive(far, 50_000)
        assert time.monotonic() - began >= 0.2  # 50 kB at 200 kB/s, less what had been saved up
        relays.heal(0)
        receive(far, 50_000)
        began = time.monotonic()
        near.sendall(bytes(100_000))
        receive(far, 100_000)
        assert time.monotonic() - began < 0.4  # at 200 kB/s it would be 0.5


def test_cut_resets_both_ends_and_refuses_until_healed(listener: socket.socket) -> None:
    with one(listener) as relays:
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
            socket.create_connection(relays.addresses[0], timeout=PATIENCE_S)
        relays.heal(0)
        with connected(relays, listener) as (near, far):
            near.sendall(b"after")
            assert receive(far, 5) == b"after"


def test_cut_leaves_the_other_rails_alone(listener: socket.socket) -> None:
    targets = [listener.getsockname()] * 2
    with Relays([HOST, "127.0.0.2"], targets, FAST) as relays:
        assert [host for host, _ in relays.addresses] == [HOST, "127.0.0.2"]
        with connected(relays, listener, rail=1) as (near, far):
            relays.cut(0)
            near.sendall(b"still here")
            assert receive(far, 10) == b"still here"


def test_a_drop_says_nothing_and_healed_it_delivers_late(listener: socket.socket) -> None:
    with one(listener) as relays, connected(relays, listener) as (near, far):
        relays.drop(0)
        near.sendall(b"late")
        far.settimeout(0.1)
        with pytest.raises(TimeoutError):
            far.recv(1)
        # Who connects now is not refused, and nobody hears of him.
        with socket.create_connection(relays.addresses[0], timeout=PATIENCE_S):
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listener.accept()
        relays.heal(0)
        far.settimeout(PATIENCE_S)
        assert receive(far, 4) == b"late"


def test_a_target_that_refuses_ends_the_connection(listener: socket.socket) -> None:
    with one(listener) as relays:
        listener.close()
        with (
            pytest.raises(ConnectionResetError),  # By connect itself, when the relay is quick.
            socket.create_connection(relays.addresses[0], timeout=PATIENCE_S) as near,
        ):
            near.recv(1)


def test_a_relay_comes_from_the_source_it_is_told(listener: socket.socket) -> None:
    with (
        Relays([HOST], [listener.getsockname()], FAST, sources=["127.0.0.9"]) as relays,
        socket.create_connection(relays.addresses[0], timeout=PATIENCE_S),
    ):
        far, (host, _) = listener.accept()
        far.close()
    assert host == "127.0.0.9"


def test_close_ends_connections_and_commands(listener: socket.socket) -> None:
    relays = one(listener)
    with connected(relays, listener) as (near, _):
        relays.close()
        relays.close()
        with pytest.raises(ConnectionResetError):
            near.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(relays.addresses[0], timeout=PATIENCE_S)
    with pytest.raises(RuntimeError, match="do not run any more"):
        relays.cut(0)


def test_an_address_that_cannot_be_had_is_an_error(listener: socket.socket) -> None:
    with pytest.raises(OSError, match="assign requested address"):
        Relays([HOST, "192.0.2.1"], [listener.getsockname()] * 2, FAST)
