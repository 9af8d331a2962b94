"""RDMA links on the fake devices: what hardware does late, wrong or not at all, and what holds."""

from __future__ import annotations

import errno
import os
import random
import struct

import numpy as np
import pytest

from tests.fake_rdma import Fabric
from tests.pairs import until
from tests.transport_links import (
    FLOW,
    LINK,
    MIB,
    SLICE,
    Links,
    address,
    header,
    one_flow,
    post_control,
    post_slice,
    summary,
)

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = pytest.mark.timeout(300)  # the first test compiles the module

OURS, THEIRS = 0, 1  # the devices of sides a and b
RETRY_EXCEEDED, REMOTE_ACCESS = 12, 10


def downs(links: Links) -> tuple[list[str], list[str]]:
    """Polls both until nothing moves; why links of a and of b went down."""
    links.settle()
    a, b = links.a.take_events(), links.b.take_events()
    return [e.text for e in a if e.what == "down"], [e.text for e in b if e.what == "down"]


@pytest.mark.parametrize("device", [OURS, THEIRS])
def test_late_completions_are_waited_for(links: Links, fabric: Fabric, device: int) -> None:
    """More slices than there are credits: without completions the sender's come back neither."""
    count = 100
    source, destination = one_flow(links, 4 * MIB)
    fabric.hold(device, True)
    for index in range(count):
        post_slice(links.a, index + 1, index * 10_000, 10_000)
    heard = links.heard(links.b)
    assert sum(event.what == "landed" for event in heard) < count
    fabric.hold(device, False)
    heard += links.heard(links.b)
    landed = [event.sequence for event in heard if event.what == "landed"]
    assert landed == list(range(1, count + 1))
    assert np.array_equal(source[: count * 10_000], destination[: count * 10_000])


@pytest.mark.parametrize("device", [OURS, THEIRS])
@pytest.mark.parametrize("status", [RETRY_EXCEEDED, REMOTE_ACCESS, 4, 13, 21])
def test_a_failed_completion_ends_the_link_and_nothing_else(
    links: Links, fabric: Fabric, device: int, status: int
) -> None:
    links.connect(LINK + 1)
    source, _ = one_flow(links, MIB)
    fabric.fail_next(device, status)
    post_slice(links.a, 1, 0, MIB)
    fallen = downs(links)
    assert len(fallen[0]) + len(fallen[1]) >= 1
    assert all(
        "RDMA" in text or "closed the connection" in text for text in [*fallen[0], *fallen[1]]
    )
    links.a.post(LINK + 1, header(SLICE, 1, FLOW, 0, MIB), b"")
    heard = links.drive(links.b, 2)
    assert summary(heard) == [("slice", 1), ("landed", 1)]
    assert source.any()


def test_a_lost_link_is_heard_of_when_the_device_has_tried_enough(
    links: Links, fabric: Fabric
) -> None:
    fabric.retry(0.05)
    fabric.cut(OURS)
    post_control(links.a, 1, b"into the void")
    heard = links.drive(links.a, 1)
    assert [event.what for event in heard] == ["down"]
    assert "retry counter" in heard[0].text
    assert links.drive(links.b, 1)[0].text == "the peer closed the connection"


def test_a_port_error_brings_its_links_down_at_once(links: Links, fabric: Fabric) -> None:
    links.connect_rdma(LINK + 1, "fake2", "fake3")
    fabric.port(OURS, False)
    heard = links.drive(links.a, 1)
    assert [(event.what, event.link) for event in heard] == [("down", LINK)]
    assert "the port went down" in heard[0].text
    links.a.post(LINK + 1, header(SLICE, 1, FLOW, 0, 0), b"")
    with pytest.raises(RuntimeError, match="not active"):
        links.a.rdma_open(LINK + 2, "fake0")
    fabric.port(OURS, True)
    links.connect(LINK + 3)


def test_a_dead_device_takes_all_its_links_and_no_others(links: Links, fabric: Fabric) -> None:
    links.connect(LINK + 1)
    links.connect_rdma(LINK + 2, "fake2", "fake3")
    fabric.fatal(OURS)
    heard = links.drive(links.a, 2)
    assert sorted(event.link for event in heard) == [LINK, LINK + 1]
    assert all("the device failed" in event.text for event in heard)


def test_nothing_lands_after_close(fabric: Fabric) -> None:
    """The device goes on writing until the flush is told; the memory is reused right after."""
    fabric.rate(THEIRS, 200e6)
    fabric.lingers(THEIRS)
    with Links("rdma") as links:
        for _ in range(5):
            source, destination = one_flow(links, 4 * MIB)
            post_slice(links.a, 1, 0, 4 * MIB)
            while not links.b.placing(LINK, FLOW):
                links.a.poll()
                links.b.poll()
            links.b.close(LINK)
            destination[:] = 0xA5
            links.settle()
            assert (destination == 0xA5).all()
            assert source.any()
            links.a.take_events()
            links.a.close(LINK)
            links.connect(LINK)


def test_placing_tells_of_reads_under_way(fabric: Fabric) -> None:
    fabric.rate(THEIRS, 100e6)
    with Links("rdma") as links:
        one_flow(links, MIB)
        assert not links.b.placing(LINK, FLOW)
        post_slice(links.a, 1, 0, MIB)
        links.drive(links.b, 1)
        links.b.poll()
        assert links.b.placing(LINK, FLOW)
        assert not links.b.placing(LINK, FLOW + 1)
        links.drive(links.b, 1)
        assert not links.b.placing(LINK, FLOW)


def test_a_refused_registration_is_said_once_and_copied_around(
    links: Links, fabric: Fabric
) -> None:
    for device in (OURS, THEIRS):
        fabric.refuse(device, errno.ENOMEM, above=1000)
    links.a.hold(77, [(0x1000, 1)])
    source, destination = one_flow(links, 300_000)
    post_slice(links.a, 1, 0, 100_000)
    post_slice(links.a, 2, 100_000, 200_000)
    heard = links.drive(links.b, 4)
    assert [event.sequence for event in heard if event.what == "landed"] == [1, 2]
    assert np.array_equal(source, destination)
    text = links.a.complaint()
    assert "ulimit -l" in text
    assert "300000 bytes" in text
    assert links.a.complaint() == ""


def test_registrations_end_with_their_last_owner(links: Links, fabric: Fabric) -> None:
    before = fabric.regions
    memory = np.zeros(80 * MIB, np.uint8)
    whole = [(address(memory), memory.nbytes)]
    links.a.hold(1, whole)
    links.a.hold(2, [(address(memory) + MIB, MIB)])  # inside: the same range serves it
    assert links.a.reach(LINK, [(address(memory) + MIB, 10)]) == 2
    until(lambda: fabric.regions == before + 3)  # one piece is needed, two are behind it
    assert links.a.reach(LINK, [(address(memory) + 70 * MIB, 10)]) == 2
    links.a.drop(1)
    assert fabric.regions == before + 3
    links.a.drop(2)
    assert fabric.regions == before
    assert links.a.reach(LINK, whole) == 1


def test_a_peer_that_ends_is_noticed_over_the_control_connection(links: Links) -> None:
    links.a.hang_up()
    links.settle()
    heard = links.b.take_events()
    assert [event.what for event in heard] == ["down"]


def test_an_end_that_was_never_joined_leaves_nothing(fabric: Fabric) -> None:
    before = fabric.regions, fabric.pairs
    with Links("rdma") as links:
        links.a.rdma_open(LINK + 1, "fake2")
        with pytest.raises(RuntimeError, match="in use"):
            links.a.rdma_open(LINK + 1, "fake2")
        links.a.close(LINK + 1)
        with pytest.raises(RuntimeError, match="nope"):
            links.a.rdma_open(LINK + 1, "nope")
    assert (fabric.regions, fabric.pairs) == before


@pytest.mark.parametrize(("at", "value"), [(0, 0), (14, 0), (14, 1), (16, 4), (20, 9), (21, 1)])
def test_endpoints_that_cannot_be_are_refused(links: Links, at: int, value: int) -> None:
    """Magic, slots, slot size, MTU, link layer."""
    endpoint = bytearray(links.a.rdma_open(LINK + 1, "fake0"))
    size = {0: "<I", 14: "<H", 16: "<I", 20: "<B", 21: "<B"}[at]
    struct.pack_into(size, endpoint, at, value)
    links.b.rdma_open(LINK + 1, "fake1")
    assert links.b.rdma_join(LINK + 1, bytes(endpoint), False) != ""


def test_a_link_counts_only_when_greetings_have_crossed(links: Links, fabric: Fabric) -> None:
    fabric.cut(OURS)
    fabric.retry(0.02)
    ends = links.a.rdma_open(LINK + 1, "fake0"), links.b.rdma_open(LINK + 1, "fake1")
    assert links.b.rdma_join(LINK + 1, ends[0], False) == ""
    assert links.a.rdma_join(LINK + 1, ends[1], True) == ""
    links.settle()
    assert links.b.rdma_greeted(LINK + 1) is False
    assert "retry counter" in str(links.a.rdma_greeted(LINK + 1))
    assert "greeted" in links.b.connect(LINK + 1, [os.dup(0)], False, 0)


def test_many_messages_both_ways_do_not_wait_for_each_other(links: Links, seed: int) -> None:
    """Far more than there are credits, with both ends full of them."""
    rng = random.Random(seed)
    for sequence in range(1, 400):
        post_control(links.a, sequence, rng.randbytes(rng.choice([1, 3000, 20_000])))
        post_control(links.b, sequence, rng.randbytes(rng.choice([1, 3000, 20_000])))
    links.settle()
    for side in (links.a, links.b):
        assert summary(side.take_events()) == [("frame", n) for n in range(1, 400)]


def test_a_flow_that_ended_is_dropped_without_a_read(links: Links) -> None:
    source, destination = one_flow(links, 2 * MIB)
    links.b.end_landing(FLOW, MIB)
    post_slice(links.a, 1, 0, MIB)
    post_slice(links.a, 2, MIB, MIB)
    heard = links.drive(links.b, 4)
    assert [event.sequence for event in heard if event.what == "landed"] == [1, 2]
    assert np.array_equal(source[:MIB], destination[:MIB])
    assert not destination[MIB:].any()
