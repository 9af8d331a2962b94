"""Stage: tests. The rest of torch_tent._engine: callbacks, memory, events, counters, bad input."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.engine_pairs import (
    WAIT_S,
    layout,
    local_ends,
    noise,
    pair,
    succeeded,
    tcp_ends,
)
from torch_tent import _engine


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def open_descriptors(begin: str = "") -> int:
    """How many descriptors this process has of files whose name begins so."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.islink(link) and os.readlink(link).startswith(begin) for link in links)


def shared_names() -> set[str]:
    """What of ours is in /dev/shm. Others may come and go there."""
    return {name for name in os.listdir("/dev/shm") if "tent" in name}


# ---- callbacks -----------------------------------------------------------------------------------


def test_watched_transfers_are_told_once_on_another_thread() -> None:
    with pair() as two:
        told: list[int] = []
        threads: set[str] = set()

        def on_done(ids: list[int]) -> None:
            told.extend(ids)
            threads.add(threading.current_thread().name)

        two.b.on_done(on_done)
        recvs = [two.recv(np.zeros(8, np.uint8), tag=n) for n in range(20)]
        for number, recv in enumerate(recvs):
            two.b.watch(recv, number % 2 == 0)
        assert succeeded(*(two.send(noise(8), tag=n) for n in range(20)))
        assert eventually(lambda: len(told) >= 20)
        assert sorted(told) == sorted(recv.id for recv in recvs)
        assert threading.current_thread().name not in threads


def test_a_late_watch_is_silent_about_what_was_waited_for() -> None:
    with pair(["shm"]) as two:
        told: list[int] = []
        two.b.on_done(told.extend)
        waited, other = two.recv(np.zeros(8, np.uint8)), two.recv(np.zeros(8, np.uint8), tag=2)
        for recv in (waited, other):
            two.b.watch(recv, False)
        sends = [two.send(noise(8)), two.send(noise(8), tag=2)]
        assert waited.wait(WAIT_S)
        assert succeeded(*sends)
        assert eventually(lambda: other.id in told)
        assert waited.id not in told


@pytest.mark.parametrize("soon", [True, False])
def test_watching_what_has_ended_tells_at_once(soon: bool) -> None:
    with pair() as two:
        told: list[int] = []
        two.b.on_done(told.extend)
        recv, send = two.recv(np.zeros(8, np.uint8)), two.send(noise(8))
        assert succeeded(send)
        assert eventually(recv.done)
        time.sleep(0.05)  # All is quiet: nothing else makes the engine look.
        two.b.watch(recv, soon)
        assert eventually(lambda: told == [recv.id])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_callback_that_raises_does_not_stop_the_others() -> None:
    with pair() as two:
        told: list[int] = []

        def on_done(ids: list[int]) -> None:
            told.extend(ids)
            raise ValueError("on purpose")

        two.b.on_done(on_done)
        for tag in (1, 2):
            recv = two.recv(np.zeros(8, np.uint8), tag=tag)
            two.b.watch(recv, True)
            assert succeeded(two.send(noise(8), tag=tag), recv)
            assert eventually(lambda recv=recv: recv.id in told)


def test_a_callback_may_use_and_even_close_its_engine() -> None:
    with pair() as two:
        closed = threading.Event()

        def on_done(ids: list[int]) -> None:
            two.b.stats()
            two.b.close()
            closed.set()

        two.b.on_done(on_done)
        recv = two.recv(np.zeros(8, np.uint8))
        two.b.watch(recv, True)
        two.send(noise(8))
        assert closed.wait(WAIT_S)


# ---- memory --------------------------------------------------------------------------------------


def test_shareable_memory_is_plain_memory_and_leaves_nothing() -> None:
    with pair(["shm"]) as two:
        before, names = open_descriptors("/memfd:tent ("), shared_names()
        for size in (0, 1, 4096, 3 << 20):
            memory = two.a.allocate(size)
            array = np.frombuffer(memory, np.uint8) if size else np.zeros(0, np.uint8)
            assert memory.bytes == size
            assert not array.any()
            if size >= 2 << 20:
                assert memory.address % (2 << 20) == 0
            array[:] = noise(size)
            y = np.zeros(size, np.uint8)
            assert succeeded(two.recv(y), two.send(array))
            assert np.array_equal(y, noise(size))
            two.forget()
            del memory, array
            gc.collect()
        assert eventually(
            lambda: open_descriptors("/memfd:tent (") == before
        )  # The peer unmaps too.
        assert shared_names() == names


def test_shareable_memory_goes_mapped_and_ordinary_memory_by_cma() -> None:
    with pair(["shm", "cma"]) as two:
        size = 1 << 20
        memory, y = two.a.allocate(size), np.zeros(size, np.uint8)
        mapped = two.send(np.frombuffer(memory, np.uint8))
        assert succeeded(two.recv(y), mapped)
        assert set(mapped.report()["rails"]) == {"shm"}
        plain = two.send(noise(size))
        assert succeeded(two.recv(y), plain)
        assert set(plain.report()["rails"]) == {"cma"}


def test_notifications_wake_their_waiter_and_come_once() -> None:
    with pair(["shm"]) as two:
        memory, x = np.zeros(64, np.uint8), noise(64)
        segment, key = two.b.register([(memory.ctypes.data, 64, 0)], False, True, 0)
        assert not two.b.wait_notification(segment, 0.01)
        seen: list[list[tuple[int, bytes]]] = []

        def listen() -> None:
            if two.b.wait_notification(segment, WAIT_S):
                seen.append(two.b.notifications(segment))

        listener = threading.Thread(target=listen)
        listener.start()
        place = _engine.Layout.contiguous(0, 64)
        write = two.a.write(two.b_of_a, layout(x), segment, key, 0, place, b"\0note", {})
        assert succeeded(write)
        listener.join()
        assert seen == [[(two.a_of_b, b"\0note")]]
        assert two.b.notifications(segment) == []


def test_a_closed_segment_ends_its_waiter_and_is_an_error() -> None:
    with pair() as two:
        memory = noise(8)
        segment, _ = two.b.register([(memory.ctypes.data, 8, 0)], True, False, 0)
        heard: list[str] = []

        def listen() -> None:
            try:
                two.b.wait_notification(segment, None)
            except RuntimeError as error:
                heard.append(str(error))

        listener = threading.Thread(target=listen)
        listener.start()
        two.b.close_segment(segment)
        listener.join(WAIT_S)
        assert heard == ["the segment is closed: nothing will be notified in it"]
        for call in (two.b.epoch, two.b.notifications):
            with pytest.raises(KeyError, match="closed"):
                call(segment)


# ---- events --------------------------------------------------------------------------------------


def events_of(engine: _engine.Engine, kind: str) -> tuple[str, int, int, str, str]:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        for event in engine.next_events(0.1):
            if event[0] == kind:
                return event
    raise AssertionError(f"no {kind!r} came")


def test_the_control_plane_hears_of_links_that_went_down_and_of_lost_peers() -> None:
    with pair(["tcp", "tcp"]) as two:
        link = next(iter(two.links))
        two.a.close_link(link, "a test wants it")
        assert events_of(two.a, "down") == ("down", two.b_of_a, link, "tcp", "a test wants it")
        assert events_of(two.b, "down")[:3] == ("down", two.a_of_b, link)
        two.a.lose_peer(two.b_of_a, "a test gave it up")
        assert events_of(two.a, "lost") == ("lost", two.b_of_a, 0, "", "a test gave it up")
        assert not two.a.alive(two.b_of_a)
        assert two.b.alive(two.a_of_b)


def test_a_transfer_without_a_link_asks_for_one_and_goes_when_it_comes() -> None:
    with pair([]) as two:
        y = np.zeros(8, np.uint8)
        recv, send = two.recv(y), two.send(noise(8))
        kind, peer, rails, _, _ = events_of(two.a, "dial")
        assert (kind, peer) == ("dial", two.b_of_a)
        assert rails & 0b111
        two.join("tcp")
        assert succeeded(recv, send)
        assert np.array_equal(y, noise(8))


def test_an_event_wait_ends_at_its_timeout() -> None:
    with pair([]) as two:
        assert two.a.next_events(0.01) == []


# ---- counters ------------------------------------------------------------------------------------


def test_counters_histograms_and_trace_tell_what_went_where() -> None:
    size, count = 300_000, 5
    with pair() as two:
        two.a.trace(True)
        for n in range(count):
            y = np.zeros(size, np.uint8)
            assert succeeded(two.recv(y, tag=n), two.send(noise(size), tag=n))
        sent, received = two.a.stats(), two.b.stats()
        (rail,), (other,) = sent["rails"], received["rails"]
        assert rail["bytes_sent"] == other["bytes_received"] == size * count
        assert rail["slices_sent"] == other["slices_received"] >= count
        assert (rail["kind"], rail["rail"], rail["up"], rail["retries"]) == ("tcp", "tcp", True, 0)
        assert rail["rate_bytes_per_s"] > 0
        assert sent["transfers"]["done"] == count
        latency = sent["latency"]["send"]
        assert latency["count"] == sum(n for _, n in latency["buckets"]) == count
        assert 0 < latency["p50_s"] <= latency["p99_s"] < WAIT_S
        slices = two.a.take_trace()
        assert sum(s[4] for s in slices) == size * count
        assert all(s[2] == "tcp" and s[5] <= s[6] and s[7] for s in slices)
        assert two.a.take_trace() == []


# ---- bad input -----------------------------------------------------------------------------------


def test_unknown_settings_and_options_are_errors() -> None:
    with pytest.raises(ValueError, match="peer_timeout"):
        _engine.Engine({"peer_timeout": 1})
    with pair() as two, pytest.raises(ValueError, match="tmeout"):
        two.send(noise(8), tmeout=1)


BLOCKS = np.arange(3, dtype=np.int64)
BAD_PARTS: list[tuple[Any, str]] = [
    ((0, 0, 8, [(4, 8)], BLOCKS), "as many blocks"),
    ((0, 0, 8, [], BLOCKS), "as many blocks"),
    ((0, 0, 8, [(1 << 62, 1 << 62)], None), "2\\^63"),
    ((0, 0, 8, [(3, 8)], BLOCKS.reshape(1, 3)), "one dimension"),
    ((0, 0, 8, [(3, 8)], BLOCKS.astype(np.int32)), "int64"),
    ((0, 0, 8), "a part is"),
]


@pytest.mark.parametrize(("part", "why"), BAD_PARTS)
def test_layouts_that_make_no_sense_are_errors(part: Any, why: str) -> None:
    with pytest.raises((ValueError, TypeError), match=why):
        _engine.Layout([part])


def test_links_that_cannot_be_are_errors_and_their_descriptors_are_closed() -> None:
    with pair() as two:
        link = next(iter(two.links))
        before = open_descriptors()
        for peer, number, kind, fds, why in [
            (two.b_of_a, 10**6, "tpc", tcp_ends, "tpc"),
            (two.b_of_a, link, "tcp", tcp_ends, "in use"),
            (99, 10**6, "tcp", tcp_ends, "lost"),
            (two.b_of_a, 10**6, "tcp", local_ends, "descriptor"),
            (two.b_of_a, 10**6, "shm", tcp_ends, "."),
        ]:
            left, right = fds()
            with pytest.raises((ValueError, RuntimeError), match=why):
                two.a.add_link(peer, number, kind, kind, left, True, os.getpid(), 0.0)
            for fd in right:
                os.close(fd)
            assert open_descriptors() == before
        stray = socket.socket()
        with pytest.raises(RuntimeError, match="connected"):
            two.a.add_link(two.b_of_a, 5, "tcp", "tcp", [stray.detach()], True, 0, 0.0)
        assert open_descriptors() == before


def test_probes_tell_whether_memory_can_be_read() -> None:
    with pair([]) as two:
        address, value = two.a.probe_word()
        assert _engine.probe_cma(os.getpid(), address, value) == ""
        assert _engine.probe_cma(os.getpid(), address, value ^ 1) != ""
        assert _engine.probe_cma(os.getpid(), 8, value) != ""
