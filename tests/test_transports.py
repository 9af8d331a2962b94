"""Stage: tests. The contract that every transport keeps, with real bytes between two ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.transport_links import (
    CONTROL,
    CUDA,
    FLOW,
    GUARD,
    KINDS,
    LINK,
    LOCAL,
    MIB,
    OPEN,
    PING,
    RDMA,
    SLICE,
    Links,
    address,
    header,
    one_flow,
    peek,
    post_control,
    post_slice,
    random_bytes,
    scattered,
    summary,
)

pytestmark = pytest.mark.timeout(300)  # the first test compiles the module


EVERY_KIND = [*KINDS, *RDMA, *CUDA]


@pytest.fixture(params=EVERY_KIND)
def links(request: pytest.FixtureRequest) -> Iterator[Links]:
    with Links(request.param) as made:
        yield made


def as_posted(links: Links, heard: list[Any], expected: list[tuple[str, int]]) -> bool:
    """Whether all came, in the order in which it was posted. On an RDMA link, and between GPUs,
    slices are in place later than what follows their headers, and among themselves in order."""
    if links.kind not in [*RDMA, *CUDA]:
        return summary(heard) == expected
    return all(
        [(e.what, e.sequence) for e in heard if (e.what == "landed") == landed]
        == [(what, sequence) for what, sequence in expected if (what == "landed") == landed]
        for landed in (False, True)
    )


# ---- bytes and order -----------------------------------------------------------------------------


def test_random_slices_of_random_pieces_are_exact(links: Links, seed: int) -> None:
    rng = random.Random(seed)
    flows: list[tuple[Any, Any, Any, Any, int]] = []
    posts: list[tuple[Any, int, int, int]] = []
    for flow in range(1, 13):
        sender, receiver = (links.a, links.b) if flow % 2 else (links.b, links.a)
        nbytes = rng.choice([1, 63, 4096, 100_000, 700_001, 3 * MIB])
        room = nbytes + 600 * GUARD
        source, destination = links.memory(room, sender), links.held(room)
        source[:] = random_bytes(room, rng)
        many = rng.choice([1, 40, 500])
        out = scattered(source, nbytes, rng, many)
        into = scattered(destination, nbytes, rng, many)
        sender.source_line(flow, out)
        receiver.landing_line(flow, into)
        flows.append((source, destination, out, into, nbytes))
        at = 0
        while at < nbytes:
            count = min(
                nbytes - at,
                rng.choice([1, 1000, 65536, 4 * MIB])
                if nbytes < 5000
                else rng.randint(50_000, 2 * MIB),
            )
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
    matrix, column = links.memory(rows * width), links.held(rows * 4)
    matrix[:] = random_bytes(matrix.nbytes, random.Random(3))
    pieces = [(address(matrix) + row * width, 4) for row in range(rows)]
    links.a.source_line(1, pieces)
    links.b.landing_line(1, [(address(column), column.nbytes)])
    post_slice(links.a, 1, 0, column.nbytes, 1)
    assert summary(links.drive(links.b, 2)) == [("slice", 1), ("landed", 1)]
    assert np.array_equal(column, peek(pieces))
    back = links.held(matrix.nbytes)
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
    assert as_posted(links, heard, expected)
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


@pytest.mark.parametrize("poll_bytes", [64, 1000, 4096])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_short_polls_come_to_the_same(kind: str, poll_bytes: int, seed: int) -> None:
    """Wherever a bound interrupts the work, it goes on, though no byte comes to remind of it."""
    rng = random.Random(seed)
    with Links(kind, poll_bytes) as links:
        source, destination = one_flow(links, 60_000)
        expected, at = [], 0
        for sequence in range(1, 60):
            if rng.random() < 0.5:
                post_control(links.a, sequence, rng.randbytes(rng.choice([1, 50, 1000, 5000])))
                expected.append(("frame", sequence))
                continue
            count = rng.choice([1, 50, 1000])
            post_slice(links.a, sequence, at, count)
            at += count
            expected += [("slice", sequence), ("landed", sequence)]
        assert as_posted(links, links.drive(links.b, len(expected)), expected)
        assert np.array_equal(source[:at], destination[:at])


# ---- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOCAL)
def test_a_link_is_behind_until_it_has_taken_what_came(kind: str) -> None:
    with Links(kind, 1000) as links:
        one_flow(links, 4000)
        assert not links.b.behind(LINK)
        for sequence in range(1, 5):
            post_slice(links.a, sequence, (sequence - 1) * 1000, 1000)
        links.b.poll()
        assert links.b.behind(LINK)
        links.drive(links.b, 8)
        while links.b.poll():
            assert not links.b.behind(LINK)
        assert not links.b.behind(LINK)
        links.b.close(LINK)
        assert not links.b.behind(LINK)


@pytest.mark.parametrize("count", [1, 32])
def test_a_full_link_holds_back_and_one_poll_is_bounded(links: Links, count: int) -> None:
    source, destination = one_flow(links, 32 * MIB)
    for index in range(count):
        post_slice(links.a, index + 1, index * 32 * MIB // count, 32 * MIB // count)
    while links.a.poll():
        pass
    assert links.a.take_events() == []
    calls = links.b.landing_calls
    links.b.poll()
    links.b.poll()
    landed = int(np.count_nonzero(destination))
    if links.kind not in CUDA:  # There a GPU copies, and a poll only asks it to.
        assert landed <= 2 * 2 * MIB
    assert links.b.landing_calls - calls < 100 + landed // 512
    heard = links.drive(links.b, 2 * count)
    assert sum(event.what == "landed" for event in heard) == count
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


# ---- sleep ---------------------------------------------------------------------------------------


def test_a_sleeper_is_woken_for_every_frame(links: Links) -> None:
    """Frames at random times, while the other end falls asleep after each: no wake-up is lost."""
    rounds = 300
    heard: list[Any] = []

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
