"""The wire: messages survive the journey, and no bytes whatsoever crash a decoder."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tent._simulator import (
    Message,
    Opening,
    Target,
    crc32c,
    decode_message,
    decode_opening,
    header_well_formed,
)

OFFER, ACCEPT, WRITE, READ, READ_DATA, DONE, REFUSE = 1, 2, 3, 4, 5, 6, 7
KINDS = range(1, 13)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@st.composite
def parts(draw: st.DrawFn) -> tuple:
    dims = draw(st.lists(st.tuples(st.integers(0, 50), st.integers(-(2**31), 2**31)), max_size=3))
    blocks = None
    if dims and draw(st.booleans()):
        blocks = draw(st.lists(st.integers(0, 2**20), min_size=1, max_size=20))
        dims[0] = (len(blocks), dims[0][1])
    return (draw(u64), draw(u32), draw(st.integers(0, 2**20)), dims, blocks)


targets = st.builds(Target, u32, u64, u32, st.lists(parts(), max_size=4))


@st.composite
def messages(draw: st.DrawFn) -> Message:
    message = Message()
    message.kind = draw(st.sampled_from(KINDS))
    message.id = draw(u64)
    if message.kind == OFFER:
        message.context, message.tag = draw(u64), draw(u64)
        message.is_inline = draw(st.booleans())
    if message.kind in (OFFER, READ):
        message.meta, message.bytes = draw(u32), draw(u64)
    if message.kind == REFUSE:
        message.code = draw(st.integers(0, 7))
    if message.kind == WRITE:
        message.has_note = draw(st.booleans())
    if message.kind in (REFUSE, WRITE):
        message.text = draw(st.binary(max_size=100))
    if message.kind in (WRITE, READ):
        message.target = draw(targets)
    if message.kind in (WRITE, READ_DATA) or message.is_inline:
        message.payload = draw(st.binary(max_size=200))
    return message


@st.composite
def openings(draw: st.DrawFn) -> Opening:
    opening = Opening()
    opening.kind = draw(st.integers(1, 3))
    opening.bytes, opening.request = draw(u64), draw(u64)
    opening.has_note, opening.note = draw(st.booleans()), draw(st.binary(max_size=100))
    if opening.kind == 1:
        opening.target = draw(targets)
    return opening


MESSAGE_FIELDS = [
    "kind",
    "code",
    "id",
    "context",
    "tag",
    "bytes",
    "meta",
    "is_inline",
    "has_note",
    "text",
    "payload",
]


def fields(message: Message) -> tuple:
    return (*(getattr(message, name) for name in MESSAGE_FIELDS), message.target.fields)


@given(messages())
def test_a_message_survives_the_journey(message: Message) -> None:
    arrived = decode_message(message.encode())
    assert arrived is not None
    assert fields(arrived) == fields(message)
    assert arrived.encode() == message.encode()


@given(openings())
def test_an_opening_survives_the_journey(opening: Opening) -> None:
    arrived = decode_opening(opening.encode())
    assert arrived is not None
    for name in ("kind", "bytes", "request", "has_note", "note"):
        assert getattr(arrived, name) == getattr(opening, name)
    assert arrived.target.fields == opening.target.fields


@given(messages(), st.data())
def test_a_cut_or_stretched_body_is_malformed(message: Message, data: st.DataObject) -> None:
    body = message.encode()
    cut = data.draw(st.integers(0, len(body) - 1))
    assert decode_message(body[:cut]) is None
    assert decode_message(body + data.draw(st.binary(min_size=1, max_size=9))) is None


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_crash_a_decoder(body: bytes) -> None:
    message = decode_message(body)
    if message is not None:
        assert message.encode() == body
    decode_opening(body)


@given(st.one_of(messages(), openings()), st.data())
def test_damaged_bodies_never_crash_a_decoder(sound: Message | Opening, data: st.DataObject):
    body = bytearray(sound.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    for decode in (decode_message, decode_opening):
        found = decode(bytes(body))
        if found is not None:
            found.encode()


def read_of_runs(*lengths: int) -> bytes:
    """A read whose layout has one list of blocks per length, each written as a single run."""
    body = struct.pack("<BQIQIQI", READ, 1, 0, 0, 1, 2, 3) + struct.pack("<I", len(lengths))
    for length in lengths:
        body += struct.pack("<QIQI", 0, 0, 1, 1) + struct.pack("<Qq", length, 1)
        body += struct.pack("<BII", 1, length, 1) + struct.pack("<qI", 0, length)
    return body


def test_a_few_bytes_do_not_become_much_memory() -> None:
    assert decode_message(read_of_runs(100_000)) is not None
    for lengths in ([2**24], [2**32 - 1], [2**21] * 5):
        assert decode_message(read_of_runs(*lengths)) is None
    for lie in (2**32 - 1, 2**31, 1000):
        assert decode_message(struct.pack("<BQI", READ_DATA, 1, lie) + b"x" * 8) is None


def header(**change: int) -> bytes:
    given = {
        "magic": 0x31544E54, "kind": 1, "flags": 0, "reserved": 0, "body_bytes": 100, "crc": 0,
        "sequence": 1, "ack": 0, "eager": 0, "flow": 5, "offset": 0, "control": 0,
    } | change  # fmt: skip
    return struct.pack("<IBBHIIQQQQQQ", *given.values())


SLICE, OPEN, CONTROL, ACK, PING = 1, 2, 3, 4, 5


@pytest.mark.parametrize(
    ("change", "sound"),
    [
        ({}, True),
        ({"flags": 1}, True),
        ({"magic": 0}, False),
        ({"kind": 0}, False),
        ({"kind": 6}, False),
        ({"flags": 3}, True),
        ({"flags": 4}, False),
        ({"reserved": 1}, False),
        ({"body_bytes": 0}, False),
        ({"body_bytes": 2**26 + 1}, False),
        ({"sequence": 0}, False),
        ({"flow": 0}, False),
        ({"offset": 2**64 - 50}, False),
        ({"kind": OPEN}, True),
        ({"kind": OPEN, "flow": 0}, False),
        ({"kind": CONTROL, "control": 1}, True),
        ({"kind": CONTROL, "control": 0}, False),
        ({"kind": ACK, "body_bytes": 0, "sequence": 0}, True),
        ({"kind": ACK, "sequence": 0}, False),
        ({"kind": ACK, "body_bytes": 0}, False),
        ({"kind": PING, "body_bytes": 0}, True),
        ({"kind": PING}, False),
        ({"kind": PING, "body_bytes": 0, "sequence": 0}, False),
    ],
)
def test_headers_are_judged_before_anything_else(change: dict[str, int], sound: bool) -> None:
    assert header_well_formed(header(**change)) is sound


@given(st.binary(min_size=64, max_size=64))
def test_arbitrary_headers_are_not_well_formed(raw: bytes) -> None:
    if not raw.startswith(struct.pack("<I", 0x31544E54)):
        assert not header_well_formed(raw)


def test_crc32c_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"") == 0


@given(st.binary(min_size=1, max_size=200), st.integers(0, 10_000))
def test_crc32c_sees_every_flipped_bit(data: bytes, where: int) -> None:
    flipped = bytearray(data)
    flipped[where // 8 % len(data)] ^= 1 << where % 8
    assert crc32c(bytes(flipped)) != crc32c(data)
