"""Stage: tests. The other half of the contract that every transport keeps: what is cancelled,
closed or malformed is not touched, and takes nothing else with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.contract_module import contract
from tests.transport_links import (
    ACK,
    CONTROL,
    FLOW,
    KINDS,
    LINK,
    MAGIC,
    MIB,
    OPEN,
    PING,
    SLICE,
    Links,
    address,
    header,
    link_descriptors,
    one_flow,
    post_control,
    post_slice,
    resources,
    summary,
)

pytestmark = pytest.mark.timeout(300)  # the first test compiles the module


@pytest.fixture(params=KINDS)
def links(request: pytest.FixtureRequest) -> Iterator[Links]:
    with Links(request.param) as made:
        yield made


# ---- what is cancelled is not touched ------------------------------------------------------------


def test_a_landing_that_ends_is_not_written_to_any_more(links: Links) -> None:
    source, destination = one_flow(links, 8 * MIB)
    post_slice(links.a, 1, 0, 4 * MIB)
    post_slice(links.a, 2, 4 * MIB, 4 * MIB)
    post_control(links.a, 3, b"in step")
    while int(np.count_nonzero(destination)) < MIB:
        links.a.poll()
        links.b.poll()
    links.b.end_landing(FLOW, 0)
    before = destination.copy()
    heard = links.heard(links.b)
    assert summary(heard) == [
        ("slice", 1),
        ("landed", 1),
        ("slice", 2),
        ("landed", 2),
        ("frame", 3),
    ]
    assert np.array_equal(destination, before)
    assert not np.array_equal(destination, source)


def test_a_source_that_ended_before_its_slice_left_is_not_read(links: Links) -> None:
    """The slice becomes a ping of the same number, so that the sequence has no gap."""
    _, destination = one_flow(links, 48 * MIB)
    for index in range(12):
        post_slice(links.a, index + 1, 4 * index * MIB, 4 * MIB)
    post_control(links.a, 13, bytes(2 * MIB))  # keeps the next slices from leaving, on any link
    post_slice(links.a, 14, 0, MIB)
    post_slice(links.a, 15, MIB, MIB)
    other = np.frombuffer(b"still there", np.uint8).copy()
    landing = np.zeros_like(other)
    links.a.source_line(FLOW + 1, [(address(other), other.nbytes)])
    links.b.landing_line(FLOW + 1, [(address(landing), landing.nbytes)])
    post_slice(links.a, 16, 0, other.nbytes, FLOW + 1)
    links.a.end_source(FLOW, 0)
    links.b.end_landing(FLOW, 0)
    before = destination.copy()
    heard = links.heard(links.b)
    assert [(e.what, e.kind, e.sequence) for e in heard[-4:]] == [
        ("frame", PING, 14),
        ("frame", PING, 15),
        ("slice", SLICE, 16),
        ("landed", SLICE, 16),
    ]
    assert [e.sequence for e in heard if e.what in ("frame", "landed")] == list(range(1, 17))
    assert np.array_equal(destination, before)
    assert np.array_equal(landing, other)


def started_slice(links: Links) -> tuple[Any, Any]:
    """A slice whose source ends when only a part of it is on the way."""
    source, destination = one_flow(links, 32 * MIB)
    links.a.end_source(FLOW, 24 * MIB)
    post_slice(links.a, 1, 0, 32 * MIB)
    post_control(links.a, 2, b"in step")
    return source, destination


def test_a_source_that_ends_in_its_slice_keeps_the_stream_in_step(links: Links) -> None:
    _, destination = started_slice(links)
    while not destination[0]:
        links.a.poll()
        links.b.poll()
    links.b.end_landing(FLOW, 0)
    heard = links.heard(links.b)
    assert summary(heard) == [("slice", 1), ("landed", 1), ("frame", 2)]
    assert heard[-1].body == b"in step"


def test_filler_is_never_taken_for_bytes_that_landed(links: Links) -> None:
    started_slice(links)
    heard = links.heard(links.b)
    assert [event.what for event in heard] == ["slice", "down"]
    assert "gave up" in heard[-1].text


@pytest.mark.parametrize("call", ["landing", "slice", "landed", "frame"])
def test_close_inside_a_call_is_the_end(links: Links, call: str) -> None:
    _, destination = one_flow(links, 16 * MIB)
    for index in range(4):
        post_control(links.a, 2 * index + 1, b"control")
        post_slice(links.a, 2 * index + 2, 4 * index * MIB, 4 * MIB)
    links.b.close_in(call, 2)
    while links.b.poll() or links.a.events == 0:
        links.a.poll()
    before = destination.copy()
    links.settle()
    assert np.array_equal(destination, before)
    heard = links.b.take_events()
    assert [event for event in heard if event.what == "down"] == []  # who closes is not told
    if call == "landing":  # not even what this very call allowed
        assert not destination[links.b.last_landing :].any()
    limit = {"landing": 2, "slice": 5, "landed": 6, "frame": 4}[call]
    assert len(heard) == limit
    assert [event.what for event in links.a.take_events()] == ["down"]


def test_close_between_calls_is_the_end(links: Links) -> None:
    _, destination = one_flow(links, 32 * MIB)
    for index in range(8):
        post_slice(links.a, index + 1, 4 * index * MIB, 4 * MIB)
    while not destination[0]:
        links.a.poll()
        links.b.poll()
    links.b.close(LINK)
    before = destination.copy()
    links.settle()
    assert np.array_equal(destination, before)
    assert not destination.all()
    post_slice(links.b, 1, 0, 8)  # for a link that is no more: nothing happens
    links.b.close(LINK)


# ---- what is malformed closes the link, and nothing else -----------------------------------------


MALFORMED = {
    "magic": header(CONTROL, 1, body_bytes=4, magic=MAGIC + 1),
    "kind": header(9, 1, body_bytes=4),
    "kind 0": header(0, 1),
    "reserved": header(CONTROL, 1, body_bytes=4, reserved=1),
    "flags": header(CONTROL, 1, body_bytes=4, flags=0x80),
    "too long": header(CONTROL, 1, body_bytes=(64 << 20) + 1),
    "longest": header(CONTROL, 1, body_bytes=0xFFFFFFFF),
    "no number": header(CONTROL, 0, body_bytes=4),
    "ack with a body": header(ACK, 0, body_bytes=4),
    "offset": header(OPEN, 1, 0, body_bytes=4),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_header_closes_the_link_and_nothing_else(links: Links, what: str) -> None:
    links.connect(LINK + 1)
    post_control(links.a, 1, b"good")
    links.a.post(LINK, MALFORMED[what], b"evil")
    post_control(links.a, 2, b"never heard")
    links.a.post(LINK + 1, header(CONTROL, 1, body_bytes=5), b"other")
    heard = links.heard(links.b)
    on_link = [event for event in heard if event.link == LINK]
    assert [event.what for event in on_link] == ["frame", "down"]
    assert "malformed" in on_link[-1].text
    assert [event.body for event in heard if event.link == LINK + 1] == [b"other"]
    assert [event.what for event in links.a.take_events()] == ["down"]


@pytest.mark.parametrize("call", ["frame", "slice", "landed"])
def test_what_the_receiver_refuses_closes_the_link(links: Links, call: str) -> None:
    one_flow(links, 1000)
    links.b.refuse(call)
    post_slice(links.a, 1, 0, 1000)
    post_control(links.a, 2, b"control")
    post_slice(links.a, 3, 0, 1000)
    heard = links.heard(links.b)
    assert [event.what for event in heard][-2:] == [call, "down"]


# ---- ends ----------------------------------------------------------------------------------------


def test_the_end_of_a_peer_is_heard_after_what_it_said(links: Links) -> None:
    post_control(links.a, 1, b"bye")
    if links.kind.startswith("tcp"):
        links.b.poll()  # a reset overtakes what lies in the kernel
    links.a.hang_up()
    heard = links.heard(links.b)
    assert [(event.what, event.body[:3]) for event in heard][:1] == [("frame", b"bye")]
    assert [event.what for event in heard] == ["frame", "down"]
    assert any(word in heard[-1].text for word in ("closed", "reset"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_descriptor_and_no_mapping_is_left(kind: str) -> None:
    contract()
    before = resources()
    for round_ in range(6):
        with Links(kind) as links:
            links.connect(LINK + 1)
            source, destination = one_flow(links, MIB, round_)
            post_slice(links.a, 1, 0, MIB)
            links.drive(links.b, 2)
            assert np.array_equal(source, destination)
            if round_ % 3 == 1:
                links.b.close(LINK)
                links.settle()
            elif round_ % 3 == 2:
                links.a.post(LINK, header(9, 2), b"")
                links.settle()
    del source, destination, links
    assert resources() == before


@pytest.mark.parametrize("kind", KINDS)
def test_connect_owns_its_descriptors_also_when_it_fails(kind: str) -> None:
    contract()
    before = resources()
    with Links(kind) as links:
        inside = resources()
        memories = [os.memfd_create(name) for name in "abc"]
        for fds in ([], memories[:1], memories[1:]):
            assert links.a.connect(LINK + 1, fds, True, os.getpid()) != ""
        fds, others = link_descriptors(kind)
        assert "in use" in links.a.connect(LINK, fds, True, os.getpid())
        for fd in others:
            os.close(fd)
        assert resources() == inside
    del links
    assert resources() == before
