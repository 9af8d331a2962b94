"""Stage: tests. The transport between GPUs: a peer that names what it may not, and what the end of
a link has to wait for. The contract of all transports is in test_transports.py.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.fake_cuda import Fake
from tests.test_local_transports import DESCRIPTIONS, Liar
from tests.transport_links import (
    FLOW,
    LINK,
    MIB,
    SLICE,
    Links,
    address,
    gpu_memory,
    header,
    one_flow,
    post_slice,
)

pytest_plugins = ["tests.cuda_fixtures"]
pytestmark = pytest.mark.timeout(300)  # the first test compiles the module
SPACE = 4


@pytest.fixture
def liar(fake: Fake) -> Iterator[Liar]:
    made = Liar("cuda_ipc")
    yield made
    made.close()


def space(number: int, base: int, nbytes: int) -> bytes:
    """The chunk that makes an allocation known."""
    return struct.pack("<II5Q64x", SPACE, 1, number, 0, 0, base, nbytes)


@pytest.mark.parametrize("what", DESCRIPTIONS)
def test_a_malformed_description_closes_the_link(liar: Liar, what: str) -> None:
    destination = gpu_memory(1000, 1)
    liar.side.landing_line(FLOW, [(address(destination), 1000)])
    liar.write_slice(*DESCRIPTIONS[what])
    assert liar.down() != ""
    assert not destination.any()


@pytest.mark.parametrize(("at", "nbytes"), [(0, 0), (1000, 100), (901, 100), (2**63, 100)])
def test_a_piece_outside_of_its_allocation_closes_the_link(
    liar: Liar, at: int, nbytes: int
) -> None:
    source, destination = gpu_memory(1000, 0), gpu_memory(1000, 1)
    source[:] = 7
    liar.side.landing_line(FLOW, [(address(destination), 1000)])
    liar.write(header(SLICE, 1, FLOW, 0, 100))
    liar.write(space(1, address(source), 1000 if nbytes else 0))
    liar.write(struct.pack("<IIQQQ", 1, 1, 1, at, 100))
    assert liar.down() != ""
    assert not destination.any()


def test_the_liar_can_also_tell_the_truth(liar: Liar) -> None:
    source, destination = gpu_memory(1000, 0), gpu_memory(1000, 1)
    source[:] = 7
    liar.side.landing_line(FLOW, [(address(destination), 1000)])
    liar.write(header(SLICE, 1, FLOW, 0, 100) + space(1, address(source), 1000))
    liar.write(struct.pack("<IIQQQ", 1, 1, 1, 900, 100))
    assert [event.what for event in liar.heard()] == ["slice", "landed"]
    assert destination.tolist() == [7] * 100 + [0] * 900


def test_a_slice_for_the_hosts_memory_closes_the_link(liar: Liar) -> None:
    source, destination = gpu_memory(1000, 0), np.zeros(1000, np.uint8)
    liar.side.landing_line(FLOW, [(address(destination), 1000)])
    liar.write(header(SLICE, 1, FLOW, 0, 100) + space(1, address(source), 1000))
    liar.write(struct.pack("<IIQQQ", 1, 1, 1, 900, 100))
    assert "belong elsewhere" in liar.down()


def test_what_each_end_can_read_is_known(fake: Fake) -> None:
    with Links("cuda_ipc") as links:
        links.settle()
        assert all(links.a.reads(LINK, ours, theirs) for ours in (0, 1) for theirs in (0, 1))
        assert links.a.refuses(LINK, 0, 1) == ""
        assert "do not go to" in links.a.refuses(LINK, 0, -1)
        assert "do not come from" in links.a.refuses(LINK, -1, 0)
        gpu = gpu_memory(100, 0)
        assert links.a.reach(LINK, [(address(gpu), 100)]) == 2
        assert links.a.reach(LINK, [(address(gpu), 101)]) == 0
        assert links.a.reach(LINK, [(address(np.zeros(9, np.uint8)), 9)]) == 0
        assert links.a.reach(LINK + 1, [(address(gpu), 100)]) == 0
    fake.c.peers(False)
    with Links("cuda_ipc") as links:
        links.settle()
        assert links.a.reads(LINK, 1, 1)
        assert not links.a.reads(LINK, 0, 1)
        assert "cuda:1 cannot read our cuda:0" in links.a.refuses(LINK, 0, 1)


def test_closing_waits_for_the_copies(fake: Fake) -> None:
    with Links("cuda_ipc") as links:
        _, destination = one_flow(links, 8 * MIB)
        fake.model(across=200e6)
        for index in range(8):
            post_slice(links.a, index + 1, index * MIB, MIB)
        while links.b.copying < 4:
            links.a.poll()
            links.b.poll()
        links.b.close(LINK)
        destination[:] = 201
        fake.idle()
        assert (destination == 201).all()


def test_what_the_peer_has_withdrawn_does_not_count(fake: Fake) -> None:
    """Its memory may be another transfer's by now: the bytes that are being copied are wrong."""
    with Links("cuda_ipc") as links:
        one_flow(links, 4 * MIB)
        fake.model(across=20e6)
        post_slice(links.a, 1, 0, 4 * MIB)
        while links.b.copying == 0:
            links.a.poll()
            links.b.poll()
        links.a.close(LINK)
        time.sleep(0.05)
        assert {event.what for event in links.heard(links.b)} == {"slice", "down"}
