"""Stage: tests. The contract that every transport keeps, with real bytes between two ends."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract_module import contract
from tests.transport_links import (
    ACK,
    CONTROL,
    GUARD,
    KINDS,
    LINK,
    MAGIC,
    OPEN,
    PING,
    SLICE,
    Links,
    address,
    header,
    peek,
    random_bytes,
    scattered,
    summary,
)

pytestmark = pytest.mark.timeout(300)  # the first test compiles the module

MIB = 1 << 20
FLOW = 5


@pytest.fixture(params=KINDS)
def links(request: pytest.FixtureRequest) -> Iterator[Links]:
    with Links(request.param) as made:
        yield made


def one_flow(links: Links, nbytes: int, seed: int = 1) -> tuple[Any, Any]:
    """A contiguous flow from a to b of random bytes: (source array, destination array)."""
    source = links.memory(nbytes)
    source[:] = random_bytes(nbytes, random.Random(seed))
    destination = np.zeros(nbytes, np.uint8)
    links.a.source_line(FLOW, [(address(source), nbytes)])
    links.b.landing_line(FLOW, [(address(destination), nbytes)])
    return source, destination


def post_slice(side: Any, sequence: int, offset: int, nbytes: int, flow: int = FLOW) -> None:
    side.post(LINK, header(SLICE, sequence, flow, offset, nbytes), b"")


def post_control(side: Any, sequence: int, body: bytes) -> None:
    side.post(LINK, header(CONTROL, sequence, body_bytes=len(body)), body)


# ---- bytes and order -------------------------------------------------------------------------------


def test_random_slices_of_random_pieces_are_exact(links: Links, seed: int) -> None:
    rng = random.Random(seed)
    flows: list[tuple[Any, Any, Any, Any, int]] = []
    posts: list[tuple[Any, int, int, int]] = []
    for flow in range(1, 13):
        sender, receiver = (links.a, links.b) if flow % 2 else (links.b, links.a)
        nbytes = rng.choice([1, 63, 4096, 100_000, 700_001, 3 * MIB])
        room = nbytes + 600 * GUARD
        source, destination = links.memory(room, sender), np.zeros(room, np.uint8)
        source[:] = random_bytes(room, rng)
        many = rng.choice([1, 40, 500])
        out = scattered(source, nbytes, rng, many)
        into = scattered(destination, nbytes, rng, many)
        sender.source_line(flow, out)
        receiver.landing_line(flow, into)
        flows.append((source, destination, out, into, nbytes))
        at = 0
        while at < nbytes:
            count = min(nbytes - at, rng.choice([1, 1000, 65536, 4 * MIB]) if nbytes < 5000
                        else rng.randint(50_000, 2 * MIB))
            posts.append((sender, flow, at, count))
            at += count
    rng.shuffle(posts)
    for sequence, (sender, flow, at, count) in enumerate(posts, 1):
        post_slice(sender, sequence, at, count, flow)
    links.settle()
    heard = links.a.take_events() + links.b.take_events()
    assert [e for e in heard if e.what == "down"] == []
    assert sum(e.what == "landed" for e in heard) == len(posts)
    for _, destination, out, into, nbytes in flows:
        assert np.array_equal(peek(out), peek(into))
        assert int(np.count_nonzero(destination)) == nbytes  # nothing between the pieces


def test_tiny_pieces_do_not_need_a_frame_each(links: Links) -> None:
    """A column of a matrix, four bytes at a time, into one piece and back out of one."""
    rows, width = 40_000, 16
    matrix, column = links.memory(rows * width), np.zeros(rows * 4, np.uint8)
    matrix[:] = random_bytes(matrix.nbytes, random.Random(3))
    pieces = [(address(matrix) + row * width, 4) for row in range(rows)]
    links.a.source_line(1, pieces)
    links.b.landing_line(1, [(address(column), column.nbytes)])
    post_slice(links.a, 1, 0, column.nbytes, 1)
    assert summary(links.drive(links.b, 2)) == [("slice", 1), ("landed", 1)]
    assert np.array_equal(column, peek(pieces))
    back = np.zeros_like(matrix)
    links.a.source_line(2, [(address(column), column.nbytes)])
    links.b.landing_line(2, [(address(back) + row * width, 4) for row in range(rows)])
    post_slice(links.a, 2, 0, column.nbytes, 2)
    assert summary(links.drive(links.b, 2)) == [("slice", 2), ("landed", 2)]
    assert np.array_equal(back.reshape(rows, width)[:, :4].ravel(), column)


def test_frames_keep_their_order(links: Links, seed: int) -> None:
    rng = random.Random(seed)
    source, destination = one_flow(links, 4 * MIB)
    expected: list[tuple[str, int]] = []
    bodies: list[bytes] = []
    at = 0
    for sequence in range(1, 400):
        kind = rng.choice([SLICE, CONTROL, OPEN, PING])
        if kind == SLICE:
            count = rng.randint(1, 10_000)
            post_slice(links.a, sequence, at, count)
            at += count
            expected += [("slice", sequence), ("landed", sequence)]
            continue
        body = b"" if kind == PING else rng.randbytes(rng.choice([1, 100, 4096, 4097, 70_000]))
        bodies.append(body)
        links.a.post(LINK, header(kind, sequence, FLOW, body_bytes=len(body)), body)
        expected.append(("frame", sequence))
        if rng.random() < 0.2:
            links.b.poll()
    heard = links.drive(links.b, len(expected))
    assert summary(heard) == expected
    assert [event.body for event in heard if event.what == "frame"] == bodies
    assert np.array_equal(source[:at], destination[:at])


@pytest.mark.parametrize("nbytes", [1, 4096, 65_536 - 64, 65_536, MIB, 5 * MIB + 1])
def test_bodies_larger_than_any_buffer_pass(links: Links, nbytes: int) -> None:
    body = random.Random(nbytes).randbytes(nbytes)
    post_control(links.a, 1, body)
    post_control(links.a, 2, b"after")
    heard = links.drive(links.b, 2)
    assert [event.body for event in heard] == [body, b"after"]


def test_a_receiver_may_post_while_it_is_called(links: Links) -> None:
    links.b.reply(LINK, header(CONTROL, 1, body_bytes=4), b"pong", 100)
    for sequence in range(1, 101):
        post_control(links.a, sequence, b"ping")
    heard = links.drive(links.a, 100)
    assert {event.body for event in heard} == {b"pong"}


# ---- bounds ----------------------------------------------------------------------------------------


def test_a_full_link_holds_back_and_one_poll_is_bounded(links: Links) -> None:
    source, destination = one_flow(links, 32 * MIB)
    for index in range(32):
        post_slice(links.a, index + 1, index * MIB, MIB)
    while links.a.poll():
        pass
    assert links.a.take_events() == []
    calls = links.b.landing_calls
    links.b.poll()
    links.b.poll()
    landed = int(np.count_nonzero(destination))
    assert landed <= 2 * MIB
    assert links.b.landing_calls - calls < 100 + landed // 512
    heard = links.drive(links.b, 64)
    assert sum(event.what == "landed" for event in heard) == 32
    assert np.array_equal(source, destination)


def test_one_busy_link_does_not_starve_another(links: Links) -> None:
    links.connect(LINK + 1)
    one_flow(links, 32 * MIB)
    for index in range(32):
        post_slice(links.a, index + 1, index * MIB, MIB)
    links.a.post(LINK + 1, header(CONTROL, 1, body_bytes=5), b"hello")
    for _ in range(200):
        links.a.poll()
        links.b.poll()
        if any(event.link == LINK + 1 for event in links.b.take_events()):
            break
    else:
        pytest.fail("the small frame never came")
    assert links.b.landing_calls < 40  # the big slices had their turn, not all the turns


# ---- what is cancelled is not touched --------------------------------------------------------------


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
    assert summary(heard) == [("slice", 1), ("landed", 1), ("slice", 2), ("landed", 2), ("frame", 3)]
    assert np.array_equal(destination, before)
    assert not np.array_equal(destination, source)


def test_a_source_that_ended_before_its_slice_left_is_not_read(links: Links) -> None:
    """The slice becomes a ping of the same number, so that the sequence has no gap."""
    _, destination = one_flow(links, 48 * MIB)
    for index in range(12):
        post_slice(links.a, index + 1, 4 * index * MIB, 4 * MIB)
    post_control(links.a, 13, bytes(2 * MIB))  # keeps the next slice from leaving, on any link
    post_slice(links.a, 14, 0, MIB)
    links.a.end_source(FLOW, 0)
    links.b.end_landing(FLOW, 0)
    before = destination.copy()
    heard = links.heard(links.b)
    assert (heard[-1].what, heard[-1].kind, heard[-1].sequence) == ("frame", PING, 14)
    assert [e.sequence for e in heard if e.what in ("frame", "landed")] == list(range(1, 15))
    assert np.array_equal(destination, before)


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
    limit = {"landing": 3, "slice": 5, "landed": 6, "frame": 4}[call]
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


# ---- what is malformed closes the link, and nothing else -------------------------------------------


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


# ---- ends ------------------------------------------------------------------------------------------


def test_what_a_peer_said_before_it_ended_is_heard(links: Links) -> None:
    if links.kind.startswith("tcp"):
        links.settle()  # a reset takes with it what the kernel had not delivered
    post_control(links.a, 1, b"bye")
    if links.kind.startswith("tcp"):
        links.drive(links.b, 1)
        post_control(links.a, 1, b"bye")
    links.a.hang_up()
    heard = links.heard(links.b)
    assert heard[-1].what == "down"
    assert heard[-1].text != ""
    if not links.kind.startswith("tcp"):
        assert [event.body for event in heard[:-1]] == [b"bye"]


def test_a_sleeper_is_woken_for_every_frame(links: Links) -> None:
    """Frames at random times, while the other end falls asleep after each: no wake-up is lost."""
    rounds, heard = 300, []

    def listen() -> None:
        while len(heard) < rounds:
            if not links.b.poll():
                assert links.b.sleep(5000) != 2, "slept through a frame"
            heard.extend(links.b.take_events())

    links.settle()
    listener = threading.Thread(target=listen)
    listener.start()
    rng = random.Random(4)
    for sequence in range(1, rounds + 1):
        post_control(links.a, sequence, b"x" * rng.choice([1, 5000]))
        for _ in range(rng.randint(0, 300)):
            links.a.poll()
        while sequence - len(heard) > 50 and listener.is_alive():
            links.a.poll()
    while listener.is_alive() and len(heard) < rounds:
        links.a.poll()
    listener.join(10)
    assert [event.sequence for event in heard] == list(range(1, rounds + 1))


def test_nothing_to_do_means_asleep(links: Links) -> None:
    links.settle()
    assert links.b.sleep(20) == 2
    post_control(links.a, 1, b"wake up")
    links.a.poll()
    assert links.b.sleep(2000) != 2


def resources() -> tuple[int, int]:
    """Open descriptors, and mappings of shared memory, of this process."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), maps.count("memfd:tent-")


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
        for fds in ([], [os.memfd_create("no-socket")], [os.memfd_create("a"), os.memfd_create("b")]):
            assert links.a.connect(99, fds, True, os.getpid()) != ""
        assert resources() == inside
        assert "in use" in links.a.connect(LINK, [], True, 0) or True
    assert resources() == before
