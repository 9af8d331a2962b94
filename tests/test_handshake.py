"""Tests of handshake.py and conversation.py: nobody gets through who may not."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parties import TCP, parties, wait_until
from tests.strangers import (
    SECRET,
    Relay,
    connect,
    greeting,
    insiders,
    read_all,
    read_message,
)
from torch_tent import envelope
from torch_tent.conversation import (
    MESSAGE_BYTES_MAX,
    Challenge,
    Conversation,
    Hello,
    Proof,
    Stopped,
    Verdict,
    Welcome,
)

party = pytest.fixture(parties)
insider = pytest.fixture(insiders)
HELLO_DECODER: Any = msgspec.msgpack.Decoder(Hello)


def listen_to(data: bytes, kind: type[Any]) -> Stopped | Any:
    """What a conversation makes of these bytes, followed by the end."""

    async def run() -> Any:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            try:
                return await Conversation(ours, b"one", 5.0).receive(kind)
            except Stopped as stop:
                return stop

    return asyncio.run(run())


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert isinstance(listen_to(data, Hello), Stopped)


@given(st.binary(max_size=200))
def test_any_body_in_a_right_envelope_is_refused(body: bytes) -> None:
    data = envelope.wrap(b"H", msgspec.Raw(body))  # type: ignore[arg-type]
    assert isinstance(listen_to(data, Hello), Stopped)


def test_a_truncated_or_changed_message_is_refused(party: Any) -> None:
    a = party(SECRET)
    data = envelope.wrap(b"H", greeting(a.card(), a.card()))
    assert isinstance(listen_to(data, Hello), Hello)
    for length in range(0, len(data), 7):
        assert listen_to(data[:length], Hello).verdict in (Verdict.SILENT, Verdict.GONE)
    for place in range(0, len(data), 5):
        changed = bytearray(data)
        changed[place] ^= 0x10
        assert isinstance(listen_to(bytes(changed), Hello), Stopped) or place in (6, 7)


def test_an_oversized_message_is_refused_without_reading_it() -> None:
    body = msgspec.Raw(b"\x00" * (MESSAGE_BYTES_MAX + 1))
    data = envelope.wrap(b"H", body)[: envelope.HEADER_BYTES]  # type: ignore[arg-type]
    stop = listen_to(data, Hello)
    assert f"message of {MESSAGE_BYTES_MAX + 1} bytes" in stop.reason


def test_a_message_out_of_turn_is_refused() -> None:
    stop = listen_to(envelope.wrap(b"H", Proof(b"")), Hello)
    assert "Proof came out of turn, where Hello is due" in stop.reason


def test_the_proofs_of_the_two_roles_and_keys_differ() -> None:
    async def run() -> set[bytes]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            talks = [Conversation(ours, key, 1.0) for key in (b"one", b"two", None)]
            said = talks[0].said()
            return {talk.mac(role, said) for talk in talks for role in (b"dialer", b"listener")}

    assert len(asyncio.run(run())) == 6


def test_another_version_is_told_what_to_do(party: Any, caplog: pytest.LogCaptureFixture) -> None:
    b = party(SECRET)
    data = bytearray(envelope.wrap(b"H", greeting(b.card(), b.card())))
    data[5] = 9
    with connect(b.card()) as sock:
        sock.sendall(data)
        answer = listen_to(read_all(sock), Challenge)
    wanted = f"message of protocol 9, this is protocol {envelope.PROTOCOL}: upgrade torch_tent here"
    assert answer.verdict is Verdict.DENIED
    assert wanted in answer.reason
    wait_until(lambda: wanted in caplog.text)


def test_a_replayed_handshake_is_refused(party: Any) -> None:
    a, b = party(SECRET), party(SECRET)
    relay = Relay(b.card())
    try:
        a.engine.dial(a.control.peer(relay.card()), TCP)
        b.engine.wait_for(lambda engine: len(engine.links) == 1)
    finally:
        relay.close()
    hello, proof = relay.from_dialer[:2]
    made = len(b.engine.history)
    with connect(b.card()) as sock:
        sock.sendall(hello)
        assert isinstance(listen_to(read_message(sock), Challenge), Challenge)
        sock.sendall(proof)
        answer = listen_to(read_all(sock), Welcome)
    assert answer.verdict is Verdict.DENIED
    assert len([link for link in b.engine.history[made:] if not link.dialed]) == 0


@pytest.mark.parametrize("part", ["link", "source", "session", "replaces", "insist", "nonce"])
def test_a_greeting_changed_on_the_way_is_refused(party: Any, part: str) -> None:
    values = {"link": 7, "source": "127.0.0.9", "session": b"12345678", "replaces": 5}
    values |= {"insist": True, "nonce": bytes(32)}

    def change(data: bytes) -> bytes:
        try:
            hello = envelope.unwrap(b"H", data, HELLO_DECODER)
        except envelope.TicketError:
            return data
        return envelope.wrap(b"H", msgspec.structs.replace(hello, **{part: values[part]}))

    a, b = party(SECRET), party(SECRET)
    relay = Relay(b.card(), change)
    try:
        peer = a.control.peer(relay.card())
        a.engine.dial(peer, TCP)
        a.engine.wait_for(lambda engine: peer in engine.lost)
        assert "the secrets differ" in a.engine.lost[peer]
    finally:
        relay.close()
    assert a.engine.history == b.engine.history == []


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"expected": bytes(16)}, Verdict.GONE),
        ({"secret": b"two"}, Verdict.DENIED),
        ({"kind": "shm", "source": "", "target": ""}, Verdict.UNFIT),  # Over TCP.
        ({"local": True, "kind": "tcp", "source": "::1", "target": "::1"}, Verdict.UNFIT),
        ({"kind": "rdma"}, Verdict.SILENT),
        ({"nonce": b"short"}, Verdict.SILENT),
        ({"link": 0}, Verdict.SILENT),
        ({"source": "example.org"}, Verdict.SILENT),
        ({"source": ""}, Verdict.SILENT),
        ({"session": b""}, Verdict.SILENT),
        ({"peer_session": b"12345678"}, Verdict.LOST),
    ],
)
def test_a_greeting_that_cannot_be_is_refused(
    insider: Any, changes: dict[str, Any], verdict: Verdict
) -> None:
    stop = insider(**changes)
    assert stop.verdict is verdict, stop
    assert insider.engine.history == []
    assert isinstance(insider(), Welcome)
    insider.engine.wait_for(lambda engine: len(engine.links) == 1)


def test_a_link_number_that_is_taken_is_refused(insider: Any) -> None:
    assert isinstance(insider(link=42), Welcome)
    insider.engine.wait_for(lambda engine: 42 in engine.links)
    assert insider(link=42, source="127.0.0.5", session=b"12345678").verdict is Verdict.SILENT
    assert list(insider.engine.links) == [42]


def test_too_many_rails_of_one_peer_are_refused(insider: Any) -> None:
    session = b"12345678"
    answers = [insider(source=f"127.0.1.{n}", session=session) for n in range(1, 80)]
    refused = [answer for answer in answers if isinstance(answer, Stopped)]
    assert {stop.reason for stop in refused} == {"there are 64 rails already"}
    assert 50 <= len(answers) - len(refused) <= 64
