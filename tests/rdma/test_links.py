"""RDMA links on real queue pairs: every byte arrives, over all rails at once, and a rail that fails
in the middle of a transfer is not noticed and is used again when it is joined anew (P4, P2).

How fast it heals is measured in benchmarks; here the bound only tells healing from a stall.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.engine_pairs import noise
from tests.rdma import wires
from tests.rdma.pairs import KIB, MIB, Pair, segment, wait_for, well
from torch_tent import _engine

SIZE = 8 * MIB
STALL_S = 5.0
TRIES = 12


@pytest.fixture
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.close()


FAULTS: dict[str, Callable[[], None]] = {
    "cut here": lambda: wires.cut("rail1a"),
}


@pytest.mark.parametrize("size", [1, 8 * KIB + 1, 100_003, 4 * MIB])
def test_writes_and_reads_of_every_size_arrive(pair: Pair, size: int) -> None:
    source, landing, back = noise(size), np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    with segment(pair.far, landing, write=True) as target:
        assert well(pair.write(source, target))
        assert np.array_equal(source, landing)
        assert well(pair.read(target, back))
    assert np.array_equal(source, back)


def test_all_rails_carry_at_once(pair: Pair) -> None:
    source, landing = noise(SIZE), np.zeros(SIZE, np.uint8)
    with segment(pair.far, landing, write=True) as target:
        shares: list[dict[int, int]] = []
        while len(shares) < TRIES:  # What a rail can do is learnt on the way.
            landing[:] = 0
            before = pair.carried()
            assert well(pair.write(source, target))
            assert np.array_equal(source, landing)
            shares.append({rail: now - before[rail] for rail, now in pair.carried().items()})
            if min(shares[-1].values()) > SIZE // 8:
                return
    raise AssertionError(f"one rail carried little: {shares}, {pair.near.stats()['rails']}")


def take_time() -> None:
    """Holds every rail to 2 MB/s, so that a transfer still goes on when a fault has been made,
    however quick or slow the processor is."""
    for end in wires.ENDS:
        wires.shape(end, "16mbit")


def in_the_middle(pair: Pair, end: str, begin: Callable[[], _engine.Operation]) -> Any:
    """A transfer that goes on, and of which this end of rail 1 has sent something."""
    for _ in range(TRIES):
        before = wires.sent_bytes(end)
        operation = begin()
        while not operation.done():
            if wires.sent_bytes(end) > before + 256 * KIB:
                return operation
        assert well(operation)
    raise AssertionError(f"{end} sends little: {pair.near.stats()['rails']}")


def longest_gap_s(engine: _engine.Engine, begin: int, end: int) -> float:
    """The longest time in which no slice was acknowledged."""
    ended = sorted(entry[6] for entry in engine.take_trace() if entry[7])
    moments = [begin, *(at for at in ended if begin < at < end), end]
    return max(late - early for early, late in itertools.pairwise(moments)) / 1e9


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rail_that_fails_in_the_middle_is_not_noticed_and_comes_back(
    pair: Pair, fault: str
) -> None:
    source, landing = noise(SIZE), np.zeros(SIZE, np.uint8)
    with segment(pair.far, landing, write=True) as target:
        take_time()
        pair.near.trace(True)
        operation = in_the_middle(pair, "rail1a", lambda: pair.write(source, target))
        began = _engine.now_ns()
        FAULTS[fault]()
        assert not operation.done()
        assert well(operation)
        ended = _engine.now_ns()
        assert np.array_equal(source, landing)
        assert operation.report()["fences"] > 0
        assert longest_gap_s(pair.near, began, ended) < STALL_S
        wires.heal_all()
        pair.rejoin(1)

        def used() -> bool:
            before = wires.sent_bytes("rail1a")
            assert well(pair.write(source, target))
            return wires.sent_bytes("rail1a") > before + 256 * KIB

        wait_for(used, "the rail to be used again")
    assert np.array_equal(source, landing)
