"""Completions that come late, and in any order across queue pairs: every byte is right, none comes
to where it does not belong, and each slice is acknowledged once."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from tests.fake_rdma import Fabric, tell_late
from tests.pairs import noise, until
from tests.test_rdma_rails import Two
from tests.transport_links import (
    FLOW,
    GUARD,
    LINK,
    MIB,
    SLICE,
    Links,
    address,
    header,
    one_flow,
    random_bytes,
)

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = pytest.mark.timeout(300)  # the first test compiles the module

PAIRS = 4
LATE_S = 0.002
FILL = 0xA5


def more_links(links: Links, count: int) -> list[int]:
    """So many links between fake0 and fake1, on one completion queue at each end."""
    for number in range(1, count):
        links.connect(LINK + number)
    return [LINK + number for number in range(count)]


def test_slices_of_several_pairs_land_once_and_in_the_order_of_their_own(
    links: Links, fabric: Fabric, seed: int
) -> None:
    rng = random.Random(seed)
    numbers = more_links(links, PAIRS)
    sizes = [rng.choice([1, 700, 5000, 70_000]) for _ in range(160)]
    source, landing = links.memory(sum(sizes)), links.held(sum(sizes) + 2 * GUARD)
    source[:] = random_bytes(sum(sizes), rng)
    landing[:] = FILL
    links.a.source_line(FLOW, [(address(source), sum(sizes))])
    links.b.landing_line(FLOW, [(address(landing) + GUARD, sum(sizes))])
    for device in (0, 1):
        fabric.rate(device, 1e9, 20e-6)
        tell_late(fabric, device, LATE_S, seed)
    posted: list[tuple[int, int]] = []
    offset = 0
    for turn, size in enumerate(sizes):
        posted.append((numbers[turn % PAIRS], turn // PAIRS + 1))
        links.a.post(posted[-1][0], header(SLICE, posted[-1][1], FLOW, offset, size), b"")
        offset += size
    heard = links.drive(links.b, 2 * len(sizes)) + links.heard(links.b)
    landed = [(event.link, event.sequence) for event in heard if event.what == "landed"]
    assert sorted(landed) == sorted(posted)
    assert landed != posted  # The fabric did what this test is about.
    for number in numbers:
        own = [sequence for link, sequence in landed if link == number]
        assert own == sorted(own)
    assert np.array_equal(landing[GUARD:-GUARD], source)
    assert (landing[:GUARD] == FILL).all()
    assert (landing[-GUARD:] == FILL).all()


def test_what_a_closed_link_is_still_told_reaches_no_other_link(
    links: Links, fabric: Fabric
) -> None:
    """New links take the seats of those that were closed while their completions were under way."""
    numbers = more_links(links, 2 * PAIRS)
    _, landing = one_flow(links, MIB)
    fabric.hold(1, True)
    for number in numbers:
        links.a.post(number, header(SLICE, 1, FLOW, 0, 100_000), b"")
    links.settle()
    for side in (links.b, links.a):
        for number in numbers:
            side.close(number)
        side.take_events()
    landing[:] = FILL
    after = [number + 100 for number in numbers]
    ends = [(links.a.rdma_open(n, "fake0"), links.b.rdma_open(n, "fake1")) for n in after]
    fabric.hold(1, False)
    links.settle()
    assert [links.b.rdma_greeted(number) for number in after] == [False] * len(after)
    assert (landing == FILL).all()
    for number, (ours, theirs) in zip(after, ends, strict=True):
        assert links.b.rdma_join(number, ours, False) == ""
        assert links.a.rdma_join(number, theirs, True) == ""
    links.settle()
    assert [links.b.rdma_greeted(number) for number in after] == [True] * len(after)
    assert links.b.take_events() == []


def acknowledged(two: Two) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """By engine and flow: offset and length of each slice that was acknowledged, in order."""
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for name, engine in (("near", two.near), ("far", two.far)):
        for flow, _, _, offset, nbytes, _, _, acked in engine.native.take_trace():
            if acked:
                found.setdefault((name, flow), []).append((offset, nbytes))
    return {flow: sorted(slices) for flow, slices in found.items()}


@pytest.mark.usefixtures("rdma_host")
def test_transfers_over_both_rails_are_exact_and_acknowledged_once(
    fabric: Fabric, seed: int
) -> None:
    rng = random.Random(seed)
    sizes = [rng.randrange(MIB, 6 * MIB) for _ in range(6)]
    with Two() as two:
        kept: list[Any] = []
        for nbytes in sizes:
            theirs, ours = (torch.full((nbytes + 2 * GUARD,), FILL).byte() for _ in range(2))
            segment = two.far.register(theirs, access="read-write")
            remote = two.near.open(segment.ticket())
            kept.append((theirs, ours, segment, remote[GUARD:-GUARD]))
        two.near.write(noise(8), kept[0][3][:8]).wait(20)  # Joins the rails.
        until(lambda: sum(rail["up"] for rail in two.near.native.stats()["rails"]) == 2)
        for device in range(4):
            fabric.rate(device, 400e6, 20e-6)
            tell_late(fabric, device, LATE_S, seed)
        for engine in (two.near, two.far):
            engine.native.trace(True)
        writes = [two.near.write(noise(n, n), k[3]) for n, k in zip(sizes, kept, strict=True)]
        for transfer in writes:
            transfer.wait(60)
        reads = [two.near.read(k[3], k[1][GUARD:-GUARD]) for k in kept]
        for transfer in reads:
            transfer.wait(60)
        for nbytes, (theirs, ours, segment, _) in zip(sizes, kept, strict=True):
            for memory in (theirs, ours):
                assert torch.equal(memory[GUARD:-GUARD], noise(nbytes, nbytes))
                assert bool((memory[:GUARD] == FILL).all())
                assert bool((memory[-GUARD:] == FILL).all())
            segment.close()
        flows = acknowledged(two)
        assert sorted(sum(n for _, n in slices) for slices in flows.values()) == sorted(2 * sizes)
        for slices in flows.values():
            ends = [0, *(offset + nbytes for offset, nbytes in slices)]
            assert [offset for offset, _ in slices] == ends[:-1]  # No gap, and nothing twice.
