"""A rail that fails in the middle of a transfer (P4, P2, P1): nobody notices, every byte is right,
acknowledgements go on, and the rail is used again soon after it is mended.

The processor may be emulated; its clock is then its own, so that the times here mean something.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.engine_pairs import noise
from tests.rdma import wires
from tests.rdma.pairs import KIB, MIB, WAIT_S, Pair, segment, well
from torch_tent import _engine

SIZE = 16 * MIB
GAP_S = 0.1
BACK_S = 1.0
TRIES = 12


@pytest.fixture
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.close()


def in_the_middle(end: str, begin: Callable[[], _engine.Operation]) -> _engine.Operation:
    """A transfer that goes on, and of which this end of rail 1 has sent something."""
    for _ in range(TRIES):
        before = wires.sent_bytes(end)
        operation = begin()
        while not operation.done():
            if wires.sent_bytes(end) > before + 512 * KIB:
                return operation
        assert well(operation)
    raise AssertionError(f"{end} sends little")


def longest_gap_s(engine: _engine.Engine, begin: int, end: int) -> float:
    """The longest time in which no slice was acknowledged."""
    ended = sorted(entry[6] for entry in engine.take_trace() if entry[7])
    moments = [begin, *(at for at in ended if begin < at < end), end]
    return max(late - early for early, late in itertools.pairwise(moments)) / 1e9


def used_again_s(pair: Pair, end: str, again: Callable[[], _engine.Operation]) -> float:
    """Seconds until rail 1, which is mended, carries slices again. They are counted from the moment
    at which the kernel has found the way: it may hear of a carrier up to a second late."""
    pair.rejoin(1)
    began = time.monotonic()
    before = wires.sent_bytes(end)
    while wires.sent_bytes(end) < before + 512 * KIB:
        assert well(again())
        assert time.monotonic() < began + WAIT_S
    return time.monotonic() - began


@pytest.mark.parametrize("fault", wires.FAULTS)
@pytest.mark.parametrize("way", ["write", "read"])
def test_a_rail_that_fails_in_the_middle_is_not_noticed_and_comes_back(
    pair: Pair, fault: str, way: str
) -> None:
    near, far = noise(SIZE, 1), noise(SIZE, 2)
    writes = way == "write"
    sender, end = (pair.near, "rail1a") if writes else (pair.far, "rail1b")
    with segment(pair.far, far, write=True) as target:

        def begin() -> _engine.Operation:
            return pair.write(near, target) if writes else pair.read(target, near)

        assert well(begin())  # Registers, and learns what the rails can do.
        near[:] = noise(SIZE, 3)
        far[:] = noise(SIZE, 4)
        source = (near if writes else far).copy()
        sender.trace(True)
        operation = in_the_middle(end, begin)
        began = _engine.now_ns()
        wires.FAULTS[fault]()
        if fault != "silent loss":  # tc takes its time.
            assert not operation.done()
        while not operation.done():  # What follows it is hit, too.
            assert well(operation)
        operation = begin()
        assert well(operation)
        ended = _engine.now_ns()
        assert np.array_equal(near, source)
        assert np.array_equal(far, source)
        assert sender.stats()["transfers"]["fences"] > 0
        gap = longest_gap_s(sender, began, ended)
        assert gap < GAP_S, f"{gap:.3f} s without an acknowledgement"
        wires.heal_all()
        back = used_again_s(pair, end, begin)
        assert back < BACK_S, f"{back:.3f} s until the rail was used again"
    assert np.array_equal(near, far)


def test_healthy_rails_are_never_suspected(pair: Pair) -> None:
    source, landing = noise(SIZE), np.zeros(SIZE, np.uint8)
    with segment(pair.far, landing, write=True) as target:
        for _ in range(4):
            assert well(pair.write(source, target))
    assert pair.near.stats()["transfers"]["suspects"] == 0
    assert pair.far.stats()["transfers"]["suspects"] == 0


def test_nothing_lands_in_memory_that_is_used_for_something_else(pair: Pair) -> None:
    """Packets are lost, late and out of order; some transfers end by success, some are cancelled,
    and the memory gets other bytes at once."""
    size = 2 * MIB
    source, landing = noise(size), np.zeros(size, np.uint8)
    for end in ("rail1a", "rail1b"):
        wires.disturb(end, "delay", "2ms", "1ms", "loss", "1%", "reorder", "25%")
    with segment(pair.far, landing, write=True) as target:
        for turn in range(8):
            operation = pair.write(source, target)
            if turn % 2:
                time.sleep(0.01)
                operation.cancel()
            assert operation.wait(WAIT_S)
            if not operation.failed:
                assert np.array_equal(source, landing)
            landing[:] = 0xA5
            time.sleep(0.05)
            assert (landing == 0xA5).all(), f"turn {turn}: bytes landed after the end"
            if 1 not in up(pair):
                pair.rejoin(1)


def up(pair: Pair) -> set[int]:
    """The rails that have a link."""
    rails: list[dict[str, Any]] = pair.near.stats()["rails"]
    return {int(rail["rail"].split()[1]) for rail in rails if rail["up"]}


def test_without_rdma_it_goes_on_over_tcp_and_back(pair: Pair) -> None:
    source, landing = noise(SIZE), np.zeros(SIZE, np.uint8)
    pair.join_tcp(9)
    with segment(pair.far, landing, write=True) as target:
        operation = in_the_middle("rail1a", lambda: pair.write(source, target))
        wires.cut("rail0a")
        wires.cut("rail1a")
        assert well(operation)
        assert np.array_equal(source, landing)
        landing[:] = 0
        operation = pair.write(source, target)
        assert well(operation)
        assert set(operation.report()["rails"]) == {"tcp 9"}
        assert np.array_equal(source, landing)
        wires.heal_all()
        pair.rejoin(0)
        assert used_again_s(pair, "rail1a", lambda: pair.write(source, target)) < BACK_S


def test_rdma_and_tcp_carry_one_transfer_together(pair: Pair) -> None:
    source, landing = noise(SIZE), np.zeros(SIZE, np.uint8)
    pair.join_tcp(9)
    with segment(pair.far, landing, write=True) as target:
        rails: set[str] = set()
        for _ in range(TRIES):
            landing[:] = 0
            operation = pair.write(source, target)
            assert well(operation)
            assert np.array_equal(source, landing)
            rails = set(operation.report()["rails"])
            if rails == {"rdma 0", "rdma 1", "tcp 9"}:
                return
    raise AssertionError(f"only {rails}")
