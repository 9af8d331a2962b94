"""Tests of card, ticket and envelope: what comes from outside is whole and ours, or refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tent import envelope
from torch_tent.card import Address, Card, Host
from torch_tent.envelope import PROTOCOL
from torch_tent.errors import TicketError
from torch_tent.ticket import TensorLayout, Ticket

ADDRESSES = (Address("10.0.0.1", 4000, "eth0", 24, 1000), Address("fd00::2", 4001, "eth1", 64, 0))


def card(**changes: Any) -> Card:
    made = Card(
        incarnation=bytes(range(16)),
        host=Host("boot", 4026531840, 4026531836),
        pid=77,
        uid=1000,
        name="host:77",
        addresses=ADDRESSES,
        listed=False,
        transports=("shm", "cma", "tcp"),
        local_name="torch_tent/00",
        probe_address=0x7F0000001000,
        probe_value=(1 << 64) - 1,
    )
    return msgspec.structs.replace(made, **changes)


def ticket(**changes: Any) -> Ticket:
    made = Ticket(
        card=card(),
        segment=3,
        key=(1 << 64) - 2,
        epoch=5,
        access="read-write",
        device="cpu",
        planes_bytes=(80, 84),
        tensors=(
            TensorLayout(0, 0, (4, 5), (20, 4), "float32", 4),
            TensorLayout(1, 16, (4, 5), (-4, 16), "float32", 4),
        ),
    )
    return msgspec.structs.replace(made, **changes)


def test_a_ticket_comes_back_as_it_was() -> None:
    blocks = ticket(block_dim=0, blocks=4)
    assert Ticket.decode(blocks.encode()) == blocks
    assert Ticket.decode(memoryview(bytearray(ticket().encode()))) == ticket()
    assert Card.decode(card().encode()) == card()


def test_every_truncation_is_refused() -> None:
    data = ticket().encode()
    for length in range(len(data)):
        with pytest.raises(TicketError, match=r"truncated|there are none"):
            Ticket.decode(data[:length])


def test_every_changed_byte_is_refused() -> None:
    data = ticket().encode()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        if place in (6, 7):  # Padding: has no meaning.
            assert Ticket.decode(changed) == ticket()
            continue
        with pytest.raises(TicketError):
            Ticket.decode(changed)


@given(st.binary(max_size=400))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(TicketError):
        Ticket.decode(data)


@given(st.binary(max_size=300))
def test_any_body_with_a_right_envelope_is_refused(body: bytes) -> None:
    data = envelope.wrap(b"T", msgspec.Raw(body))  # type: ignore[arg-type]
    with pytest.raises(TicketError, match="malformed"):
        Ticket.decode(data)


def test_text_that_is_no_text_is_refused() -> None:
    body = msgspec.msgpack.encode(ticket()).replace(b"host:77", b"host\x8077")
    with pytest.raises(TicketError, match="malformed"):
        Ticket.decode(envelope.wrap(b"T", msgspec.Raw(body)))  # type: ignore[arg-type]


def test_foreign_bytes_and_other_kinds_are_told_apart() -> None:
    with pytest.raises(TicketError, match="not a ticket of torch_tent: they begin with b'\\\\x80"):
        Ticket.decode(b"\x80\x04pickle and more than twenty bytes")
    with pytest.raises(TicketError, match="a ticket is needed, these bytes are a card"):
        Ticket.decode(card().encode())
    with pytest.raises(TicketError, match="3 bytes too many"):
        Ticket.decode(ticket().encode() + b"abc")


@pytest.mark.parametrize(("protocol", "place"), [(PROTOCOL + 1, "here"), (0, "there")])
def test_another_version_says_who_must_upgrade(protocol: int, place: str) -> None:
    data = bytearray(ticket().encode())
    data[5] = protocol
    wanted = (
        f"ticket of protocol {protocol}, this is protocol {PROTOCOL}: upgrade torch_tent {place}"
    )
    with pytest.raises(TicketError, match=wanted):
        Ticket.decode(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"access": "execute"},
        {"key": -1},
        {"segment": 1 << 32},
        {"tensors": ()},
        {"tensors": (TensorLayout(2, 0, (1,), (4,), "float32", 4),)},
        {"tensors": (TensorLayout(0, 0, (21,), (4,), "float32", 4),)},
        {"tensors": (TensorLayout(0, 4, (2,), (-8,), "float32", 4),)},
        {"tensors": (TensorLayout(0, 0, (1 << 62, 1 << 62), (1 << 62, 4), "float32", 4),)},
        {"block_dim": 2, "blocks": 4},
        {"block_dim": 0, "blocks": 5},
        {"planes_bytes": (80, -1)},
    ],
)
def test_a_ticket_that_lies_about_its_memory_is_refused(changes: dict[str, Any]) -> None:
    fields = {name: getattr(ticket(), name) for name in Ticket.__struct_fields__} | changes
    with pytest.raises(ValueError, match=r"\w"):
        Ticket(**fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"incarnation": b"short"},
        {"addresses": ADDRESSES * 17},
        {"name": "x" * 201},
        {"local_name": "x" * 101},
        {"pid": 0},
        {"transports": ("tcp",) * 9},
        {"probe_value": 1 << 64},
    ],
)
def test_a_card_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    fields = {name: getattr(card(), name) for name in Card.__struct_fields__} | changes
    with pytest.raises(ValueError, match=r"\w"):
        Card(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        ("example.org", 1, "eth0", 0, 0),
        ("fe80::1%eth0", 1, "eth0", 64, 0),
        ("10.0.0.1", 0, "eth0", 24, 0),
        ("10.0.0.1", 1, "eth0", 33, 0),
        ("10.0.0.1", 1, "e" * 17, 24, 0),
        ("10.0.0.1", 1, "eth0", 24, -1),
        ("10.0.0.1", 1, "eth0", 24, 0, 32),
    ],
)
def test_an_address_that_cannot_be_is_refused(fields: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Address(*fields)


def test_the_largest_card_fits_into_a_handshake_message() -> None:
    address = Address("fd00:1111:2222:3333:4444:5555:6666:7777", 65535, "e" * 16, 128, 1 << 40, 31)
    largest = card(addresses=(address,) * 32, name="x" * 200, local_name="y" * 100)
    assert len(largest.encode()) < 3072
