"""Stage: tests. A waiter that sleeps is woken by what it waits for, whoever brings it; and when it
has gone, somebody else answers for the engine."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from tests.engine_pairs import KINDS, WAIT_S, Pair, layout, noise, pair, succeeded
from torch_tent import _engine


def watches(engine: _engine.Engine) -> int:
    found: int = engine.stats()["threads"]["watches"]
    return found


def until(true: Callable[[], bool]) -> None:
    """Waits for another thread; what never comes is a failure."""
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end
        time.sleep(1e-3)


def asleep(two: Pair, wait: Callable[[], object]) -> threading.Thread:
    """A thread of b that waits, and has gone to sleep in b's epoll set."""
    before = watches(two.b)
    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: watches(two.b) > before)
    return thread


def moves(two: Pair, size: int) -> None:
    """a writes into b's memory; nobody waits in b."""
    target, source = np.zeros(size, np.uint8), noise(size)
    segment, key = two.b.register([(target.ctypes.data, target.nbytes, 0)], True, True, 0)
    place = _engine.Layout.contiguous(0, size)
    write = two.a.write(two.b_of_a, layout(source), segment, key, 0, place, None, {})
    assert succeeded(write)
    assert np.array_equal(source, target)
    two.b.close_segment(segment)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 1 << 20])
def test_who_sleeps_gets_its_message_and_others_are_served_after_it(kind: str, size: int) -> None:
    with pair([kind]) as two:
        for _ in range(30):
            target = np.zeros(size, np.uint8)
            recv = two.recv(target)
            thread = asleep(two, lambda recv=recv: recv.wait(WAIT_S))
            source = noise(size)
            assert succeeded(two.send(source))
            thread.join(WAIT_S)
            assert not thread.is_alive()
            assert np.array_equal(source, target)
            moves(two, 100_000)


@pytest.mark.parametrize("kind", KINDS)
def test_others_are_served_while_somebody_sleeps(kind: str) -> None:
    with pair([kind]) as two:
        recv = two.recv(np.zeros(8, np.uint8))
        thread = asleep(two, lambda: recv.wait(WAIT_S))
        for size in (8, 100_000, 1 << 20):
            moves(two, size)
        assert thread.is_alive()
        assert succeeded(two.send(noise(8)), recv)
        thread.join(WAIT_S)


def test_of_many_that_wait_each_is_woken_by_its_own(seed: int) -> None:
    with pair(["cma"]) as two:
        count = 6
        ended: list[int] = []
        targets = [np.zeros(8, np.uint8) for _ in range(count)]
        recvs = [two.recv(target, tag=tag) for tag, target in enumerate(targets)]

        def wait(tag: int) -> None:
            if recvs[tag].wait(WAIT_S):
                ended.append(tag)

        threads = [asleep(two, lambda: wait(0))]
        threads += [threading.Thread(target=wait, args=(tag,)) for tag in range(1, count)]
        for thread in threads[1:]:
            thread.start()
        order = list(range(count))
        random.Random(seed).shuffle(order)
        for position, tag in enumerate(order):
            assert succeeded(two.send(noise(8, seed=tag + 1), tag=tag))
            until(lambda position=position: len(ended) == position + 1)
        for thread in threads:
            thread.join(WAIT_S)
        assert ended == order
        assert all(np.array_equal(target, noise(8, tag + 1)) for tag, target in enumerate(targets))
        moves(two, 100_000)


def test_who_sleeps_hears_of_a_cancel_of_another_thread() -> None:
    with pair(["shm"]) as two:
        time.sleep(1.1)  # From here on the engine's clock would wake nobody for a second.
        recv = two.recv(np.zeros(8, np.uint8))
        thread = asleep(two, lambda: recv.wait(WAIT_S))
        recv.cancel()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert recv.status()[0] != 0
        moves(two, 100_000)


def test_who_sleeps_gives_up_in_time_and_others_are_served_after_it() -> None:
    with pair(["cma"]) as two:
        for _ in range(10):
            recv = two.recv(np.zeros(8, np.uint8))
            found: list[bool] = []
            thread = asleep(two, lambda recv=recv, found=found: found.append(recv.wait(0.02)))
            thread.join(WAIT_S)
            assert found == [False]
            moves(two, 100_000)
            recv.cancel()


def test_an_engine_that_closes_ends_the_sleep() -> None:
    with pair(["cma"]) as two:
        recv = two.recv(np.zeros(8, np.uint8))
        thread = asleep(two, lambda: recv.wait(WAIT_S))
        two.b.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert recv.status()[0] != 0
