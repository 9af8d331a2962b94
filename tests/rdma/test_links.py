"""RDMA links on real queue pairs: every byte arrives, over all rails at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.engine_pairs import noise
from tests.rdma import wires
from tests.rdma.pairs import KIB, MIB, Pair, segment, well

SIZE = 8 * MIB
TRIES = 12


@pytest.fixture
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.close()


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


def test_a_rail_whose_neighbours_are_unknown_is_joined_at_once(pair: Pair) -> None:
    """The kernel by itself overlooks an answer that is there before it waits for it, and takes a
    second."""
    for end in ("rail1a", "rail1b"):
        wires.forget_neighbours(end)
    began = time.monotonic()
    pair.join(1)
    assert time.monotonic() - began < 0.5
