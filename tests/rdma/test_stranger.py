"""P6 over RDMA, seen from outside: what a peer that is not our code can do with what an engine
gives it after the handshake, and what it cannot.

The peer is pyverbs (stranger.py). Each case has a link of its own, because a refused operation ends
a queue pair: that is the first half of what is asked. The second is that memory is untouched, and
the third that the engine goes on.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from tests.faults import frames
from tests.faults.frames import Frame
from tests.rdma.stranger import Heard, Piece, Stranger
from torch_tent import _engine
from torch_tent.rdma_ports import rdma_ports

SIZE = 256 << 10
GUARD = 4096
SUCCESS = 0
FLOW = frames.FLOW_BIT | 1
RAILS_RDMA = 0b01000
_links = itertools.count(5001)


class Visit:
    """An engine on rxe0a with memory between guard bytes, and a stranger on rxe0b."""

    def __init__(self) -> None:
        # Emulated processors are slow: nobody is to be given up meanwhile.
        self.engine = _engine.Engine({"peer_timeout_s": 600.0, "rdma": True})
        self.peer = self.engine.add_peer("stranger")
        self.memory = np.full(SIZE + 2 * GUARD, 0x5A, np.uint8)
        self.base = self.memory.ctypes.data + GUARD
        self.stranger = Stranger("rxe0b")
        self.link = next(_links)
        own = next(port for port in rdma_ports() if port.device == "rxe0a")
        assert own.gid is not None
        endpoint = self.engine.rdma_open(self.link, "rxe0a", 1, own.gid.index)
        self.stranger.join(endpoint)
        self.engine.rdma_join(self.link, self.stranger.endpoint(), True)
        self.stranger.wait("a greeting", lambda: self.stranger.greeted)
        self.stranger.greet()
        self.stranger.wait("the answer", lambda: self.engine.rdma_greeted(self.link))
        rail = "rdma rxe0a:1>rxe0b:1"
        self.engine.add_link(self.peer, self.link, "rdma", rail, [], True, 0, 0.0)

    def offered(self) -> tuple[_engine.Operation, Heard]:
        """The engine writes its memory to a segment of ours: what it says of the first slice."""
        self.memory[GUARD:-GUARD] = np.arange(SIZE, dtype=np.uint32).astype(np.uint8)
        where = _engine.Layout.contiguous(self.base, SIZE)
        there = _engine.Layout.contiguous(0, SIZE)
        options = {"rails": RAILS_RDMA}
        operation = self.engine.write(self.peer, where, 1, 1, 0, there, None, options)
        return operation, self.stranger.hear(frames.SLICE)

    def down(self) -> bool:
        """Whether the engine has said that the link is down."""
        return any(
            event[0] == "down" and event[2] == self.link for event in self.engine.next_events(0.01)
        )

    def intact(self) -> bool:
        """Whether nothing beside the memory in use was written."""
        guards = np.concatenate([self.memory[:GUARD], self.memory[-GUARD:]])
        return bool((guards == 0x5A).all())

    def close(self) -> None:
        self.engine.close()
        self.stranger.close()


@pytest.fixture
def visit() -> Iterator[Visit]:
    found = Visit()
    yield found
    found.close()


# ---- what we give out ----------------------------------------------------------------------------


def test_the_key_of_a_slice_reads_exactly_its_bytes(visit: Visit) -> None:
    operation, heard = visit.offered()
    [piece] = heard.pieces
    assert piece.size == heard.size
    assert piece.address == visit.base + heard.offset
    assert visit.stranger.read(piece) == SUCCESS
    expected = visit.memory[GUARD + heard.offset :][: heard.size].tobytes()
    assert visit.stranger.memory.read(heard.size, 0) == expected
    operation.cancel()


def wrong_key(piece: Piece, visit: Visit) -> Piece:
    return Piece(piece.key ^ 0x1, piece.address, piece.size)


def behind_the_end(piece: Piece, visit: Visit) -> Piece:
    return Piece(piece.key, visit.base + SIZE - 8, 16)


def before_the_beginning(piece: Piece, visit: Visit) -> Piece:
    return Piece(piece.key, visit.base - 8, 16)


@pytest.mark.parametrize("change", [wrong_key, behind_the_end, before_the_beginning])
def test_a_read_beyond_what_was_given_fails(visit: Visit, change: object) -> None:
    assert callable(change)
    _, heard = visit.offered()
    visit.stranger.memory.write(b"\x11" * 64, 64)
    assert visit.stranger.read(change(heard.pieces[0], visit)) != SUCCESS
    assert visit.stranger.memory.read(64, 0) == b"\x11" * 64
    assert visit.intact()


def test_a_write_with_the_key_of_a_slice_fails_and_touches_nothing(visit: Visit) -> None:
    _, heard = visit.offered()
    before = visit.memory.copy()
    visit.stranger.memory.write(b"\x77" * 4096, 4096)
    piece = heard.pieces[0]
    assert visit.stranger.write(Piece(piece.key, piece.address, 4096)) != SUCCESS
    assert np.array_equal(visit.memory, before)


def test_a_key_is_of_no_use_when_its_transfer_has_ended(visit: Visit) -> None:
    operation, heard = visit.offered()
    visit.stranger.say(Frame(frames.CONTROL, struct.pack("<BQ", frames.DONE, heard.flow)))
    assert operation.wait(30)
    assert operation.status()[0] == SUCCESS
    assert visit.stranger.read(heard.pieces[0]) != SUCCESS


def test_a_key_is_of_no_use_when_its_segment_is_closed(visit: Visit) -> None:
    segment, key = visit.engine.register([(visit.base, SIZE, 0)], True, False, 0)
    where = frames.target(segment, key, frames.contiguous(0, SIZE))
    visit.stranger.say(Frame(frames.CONTROL, read_message(FLOW, SIZE, where)))
    heard = visit.stranger.hear(frames.SLICE)
    assert visit.stranger.read(heard.pieces[0]) == SUCCESS
    visit.engine.close_segment(segment)
    assert visit.stranger.read(heard.pieces[0]) != SUCCESS


# ---- what we take --------------------------------------------------------------------------------


def read_message(flow: int, size: int, where: bytes) -> bytes:
    """ "Please send me this memory", over RDMA alone."""
    return struct.pack("<BQIQ", frames.READ, flow, RAILS_RDMA, size) + where


def test_a_slice_that_is_named_lands_in_the_segment_and_nowhere_else(visit: Visit) -> None:
    target = visit.engine.register([(visit.base, SIZE, 0)], True, True, 0)
    data = np.random.default_rng(3).integers(0, 256, SIZE // 2, np.uint8).tobytes()
    visit.stranger.memory.write(data, len(data))
    where = frames.target(*target, frames.contiguous(1024, len(data)))
    visit.stranger.say(Frame(frames.OPEN, frames.opening(len(data), where), flow=FLOW))
    tail = visit.stranger.named(0, len(data))
    visit.stranger.say(Frame(frames.SLICE, body_bytes=len(data), flow=FLOW), tail)
    said = visit.stranger.hear(frames.CONTROL)
    assert (said.body[0], int.from_bytes(said.body[1:9], "little")) == (frames.DONE, FLOW)
    assert visit.memory[GUARD + 1024 :][: len(data)].tobytes() == data
    visit.memory[GUARD + 1024 :][: len(data)] = 0x5A
    assert (visit.memory == 0x5A).all()


def test_a_slice_named_with_a_wrong_key_ends_the_link_and_nothing_else(visit: Visit) -> None:
    target = visit.engine.register([(visit.base, SIZE, 0)], True, True, 0)
    where = frames.target(*target, frames.contiguous(0, 8192))
    visit.stranger.say(Frame(frames.OPEN, frames.opening(8192, where), flow=FLOW))
    tail = visit.stranger.named(0, 8192, key=visit.stranger.memory.rkey ^ 0x5)
    visit.stranger.say(Frame(frames.SLICE, body_bytes=8192, flow=FLOW), tail)
    visit.stranger.wait("the end of the link", visit.down)
    assert (visit.memory == 0x5A).all()
    assert visit.engine.alive(visit.peer)


def test_a_segment_that_may_only_be_read_takes_no_slice(visit: Visit) -> None:
    target = visit.engine.register([(visit.base, SIZE, 0)], True, False, 0)
    where = frames.target(*target, frames.contiguous(0, 8192))
    visit.stranger.say(Frame(frames.OPEN, frames.opening(8192, where), flow=FLOW))
    tail = visit.stranger.named(0, 8192)
    visit.stranger.say(Frame(frames.SLICE, body_bytes=8192, flow=FLOW), tail)
    said = visit.stranger.hear(frames.CONTROL)
    assert said.body[0] == frames.REFUSE
    assert (visit.memory == 0x5A).all()
