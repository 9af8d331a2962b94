"""P6: whatever an authenticated peer sends, nothing outside an open segment is touched, only that
connection closes, and the engine goes on.

The engine under attack has two links to one peer that is played by this test: one carries the
attack, the other one shows afterwards that the engine still works.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.faults import frames
from tests.faults.frames import Frame
from torch_tent import _engine

ATTACK, OTHER = 1001, 1002
SIZE = 4096
FLOW = frames.FLOW_BIT | 1


class Victim:
    """An engine with a writable and a read-only segment between guard bytes."""

    def __init__(self) -> None:
        self.engine = _engine.Engine({})
        self.peer = self.engine.add_peer("attacker")
        self.memory = np.full(3 * SIZE, 0x5A, np.uint8)
        base = self.memory.ctypes.data
        self.writable = self.engine.register([(base + SIZE, SIZE, 0)], True, True, 0)
        self.readable = self.engine.register([(base + SIZE, SIZE, 0)], True, False, 0)
        self.attack = self.link(ATTACK)
        self.other = self.link(OTHER)

    def link(self, number: int) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname(), timeout=10)
            theirs = server.accept()[0]
        theirs.setblocking(False)
        fds = [theirs.detach()]
        self.engine.add_link(self.peer, number, "tcp", f"rail {number}", fds, False, 0, 0.0)
        return ours

    def untouched(self) -> bool:
        return bool((self.memory == 0x5A).all())

    def wait_closed(self) -> str:
        """Waits until the engine has closed the attacked link, and says why it did."""
        for _ in range(100):
            for event in self.engine.next_events(0.1):
                if event[0] == "down" and event[2] == ATTACK:
                    while frames.read_frame(self.attack) is not None:
                        pass
                    return event[4]
        raise AssertionError("the engine kept the link")

    def still_works(self, control: int = 1, said: int = 0) -> bool:
        """Whether a proper write over the other link lands and is acknowledged with Done, over
        either: noise may have been proper, too.

        `said`: as many messages, perhaps, each of which has used up a control number.
        """
        data = bytes(range(200))
        where = frames.target(*self.writable, frames.contiguous(8, len(data)))
        body = frames.write_message(frames.FLOW_BIT | 77, where, data)
        for more in range(said + 1):
            frame_at = Frame(frames.CONTROL, body, sequence=more + 1, control=control + more)
            self.other.sendall(frame_at.pack())
        links = [link for link in (self.other, self.attack) if link.fileno() >= 0]
        while self.other in links:
            ready, _, _ = select.select(links, [], [], 10)
            assert ready, "no answer"
            for link in ready:
                frame = frames.read_frame(link)
                if frame is None:
                    links.remove(link)
                elif frame[0] == frames.CONTROL and frame[1][0] == frames.DONE:
                    return self.memory[SIZE + 8 : SIZE + 8 + len(data)].tobytes() == data
        return False

    def close(self) -> None:
        self.attack.close()
        self.other.close()
        self.engine.close()


@pytest.fixture
def victim() -> Iterator[Victim]:
    found = Victim()
    yield found
    found.close()


MALFORMED = {
    "magic": Frame(frames.PING, magic=0xDEADBEEF),
    "kind": Frame(9),
    "flags": Frame(frames.PING, flags=0x80),
    "reserved": Frame(frames.PING, reserved=1),
    "oversized": Frame(frames.CONTROL, b"", body_bytes=0xFFFFFFFF, control=1),
    "a gap": Frame(frames.PING, sequence=2),
    "no number": Frame(frames.PING, sequence=0),
    "an ack of the future": Frame(frames.ACK, sequence=0, ack=1 << 60),
    "an empty message": Frame(frames.CONTROL, b"\x00", control=1),
    "an unknown message": Frame(frames.CONTROL, struct.pack("<BQ", 200, 1), control=1),
    "a cut message": Frame(frames.CONTROL, struct.pack("<BI", frames.FENCE, 1), control=1),
    "a long message": Frame(frames.CONTROL, struct.pack("<BQQ", frames.DONE, 1, 1), control=1),
    "control far ahead": Frame(frames.CONTROL, struct.pack("<BQ", frames.DONE, 1), control=1 << 40),
    "a slice of no flow": Frame(frames.SLICE, b"x" * 64, flow=FLOW),
    "a slice beyond 64 bits": Frame(frames.SLICE, b"x" * 64, flow=FLOW, offset=(1 << 64) - 32),
    "an opening cut short": Frame(frames.OPEN, b"\x01", flow=FLOW),
    "an opening of no flow": Frame(frames.OPEN, frames.opening(1, b""), flow=5),
    "a layout of 4 billion parts": Frame(
        frames.OPEN, frames.opening(1, frames.target(1, 1, b"\xff\xff\xff\xff")), flow=FLOW
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_frame_closes_its_link_and_nothing_else(victim: Victim, what: str) -> None:
    victim.attack.sendall(MALFORMED[what].pack())
    assert victim.wait_closed()
    assert victim.untouched()
    assert victim.still_works()


def test_a_repeated_frame_closes_its_link(victim: Victim) -> None:
    where = frames.target(*victim.writable, frames.contiguous(0, 4))
    message = frames.write_message(FLOW, where, b"\x5a" * 4)
    frame = Frame(frames.CONTROL, message, sequence=1, control=1).pack()
    victim.attack.sendall(frame + frame)
    assert victim.wait_closed()
    assert victim.untouched()


def test_a_truncated_frame_lands_nothing_after_its_bytes(victim: Victim) -> None:
    where = frames.target(*victim.writable, frames.contiguous(0, SIZE))
    victim.attack.sendall(Frame(frames.OPEN, frames.opening(SIZE, where), flow=FLOW).pack())
    head = Frame(frames.SLICE, b"", sequence=2, body_bytes=SIZE, flow=FLOW).pack()
    victim.attack.sendall(head + b"\x11" * 100)
    victim.attack.close()
    victim.attack = socket.socketpair()[0]
    for _ in range(100):
        if any(event[:3:2] == ("down", ATTACK) for event in victim.engine.next_events(0.1)):
            break
    assert (victim.memory[:SIZE] == 0x5A).all()
    assert (victim.memory[SIZE + 100 :] == 0x5A).all()


def refusals() -> dict[str, tuple[str, bytes, int]]:
    """Writes that must be refused: name -> (segment, layout, key change)."""
    strided = struct.pack("<IQIQI", 1, 0, 0, 16, 1) + struct.pack("<QqB", 3, 1 << 62, 0)
    backwards = struct.pack("<IQIQI", 1, 64, 0, 16, 1) + struct.pack("<QqB", 2, -1024, 0)
    return {
        "out of range": ("writable", frames.contiguous(SIZE - 15, 16), 0),
        "before the start": ("writable", backwards, 0),
        "far out of range": ("writable", frames.contiguous(1 << 63, 16), 0),
        "an offset that wraps": ("writable", frames.contiguous((1 << 64) - 8, 16), 0),
        "another plane": ("writable", frames.contiguous(0, 16, plane=1), 0),
        "a wrong key": ("writable", frames.contiguous(0, 16), 1),
        "no right to write": ("readable", frames.contiguous(0, 16), 0),
        "a stride that overflows": ("writable", strided, 0),
    }


@pytest.mark.parametrize("what", refusals())
@pytest.mark.parametrize("inline", [True, False])
def test_an_access_beyond_the_rights_touches_nothing(
    victim: Victim, what: str, inline: bool
) -> None:
    name, layout, key_change = refusals()[what]
    segment, key = getattr(victim, name)
    where = frames.target(segment, key ^ key_change, layout)
    if inline:
        body = frames.write_message(FLOW, where, b"\x11" * 16, b"note")
        victim.attack.sendall(Frame(frames.CONTROL, body, control=1).pack())
    else:
        victim.attack.sendall(
            Frame(frames.OPEN, frames.opening(16, where), flow=FLOW).pack()
            + Frame(frames.SLICE, b"\x11" * 16, sequence=2, flow=FLOW).pack()
        )
    refused = False  # what does not even parse closes the link instead
    while not refused and (frame := frames.read_frame(victim.attack)) is not None:
        refused = frame[0] == frames.CONTROL and frame[1][0] == frames.REFUSE
    assert refused or what == "a stride that overflows"
    assert victim.untouched()
    assert victim.engine.notifications(victim.writable[0]) == []
    victim.attack.close()
    assert victim.still_works(control=2 if inline and refused else 1)


def test_a_stale_key_is_refused_after_close(victim: Victim) -> None:
    victim.engine.close_segment(victim.writable[0])
    where = frames.target(*victim.writable, frames.contiguous(0, 16))
    body = frames.write_message(FLOW, where, b"\x11" * 16)
    victim.attack.sendall(Frame(frames.CONTROL, body, control=1).pack())
    while (frame := frames.read_frame(victim.attack)) is not None:
        if frame[0] == frames.CONTROL:
            assert frame[1][0] == frames.REFUSE
            assert b"stale" in frame[1]
            break
    assert victim.untouched()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([frames.OPEN, frames.CONTROL]), st.binary(min_size=1, max_size=300)
        ),
        min_size=1,
        max_size=4,
    )
)
@example([(frames.CONTROL, b"\x06" + bytes(8))])  # by chance a message: Done, of no transfer
def test_noise_never_hangs_crashes_or_writes(chunks: list[tuple[int, bytes]]) -> None:
    victim = Victim()
    try:
        for number, (kind, noise) in enumerate(chunks, start=1):
            frame = Frame(kind, noise, sequence=number, flow=FLOW, control=number)
            try:
                victim.attack.sendall(frame.pack())
            except (BrokenPipeError, ConnectionResetError):
                break
        assert victim.still_works(said=len(chunks))
        assert (victim.memory[:SIZE] == 0x5A).all()
        assert (victim.memory[2 * SIZE :] == 0x5A).all()
    finally:
        victim.close()
