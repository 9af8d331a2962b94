"""Tests of rendezvous.py, switchboard.py and dialer.py: peers find each other, and only they."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from typing import Any

import pytest

from tests.fake_engine import FakeNative
from tests.parties import CMA, SHM, TCP, TCP_ONLY, free_port, parties, rails_of, wait_until
from tests.strangers import Relay
from torch_tent import dialer, topology
from torch_tent.card import Card
from torch_tent.settings import Settings

SOON_S = 3.0  # What is promised is "at once"; peer_timeout_s is 10.

party = pytest.fixture(parties)


# ---- finding each other -------------------------------------------------------------------------


def test_on_one_host_a_cma_and_a_shm_link_are_made(party: Any) -> None:
    a, b = party(), party()
    peer = a.call(b)
    for side in (a, b):
        side.engine.wait_for(lambda engine: len(engine.links) == 2)
        assert side.engine.rails() == ["cma", "shm"]
        assert {link.pid for link in side.engine.links.values()} == {os.getpid()}
        assert all(len(link.fds) == 2 for link in side.engine.links.values())
    assert set(a.engine.links) == set(b.engine.links)
    assert all(link.dialed and link.peer == peer for link in a.engine.links.values())
    assert not any(link.dialed for link in b.engine.links.values())
    assert b.control.peer(a.card()) == next(iter(b.engine.links.values())).peer
    assert b.control.card_of(b.control.peer(a.card())) == a.card()
    assert a.control.why_not_faster(peer) == ""
    # Each side has read the other's word.
    assert a.native.probed == [(os.getpid(), *b.engine.probe_word())]
    assert b.native.probed == [(os.getpid(), *a.engine.probe_word())]


@pytest.mark.parametrize("refuser", ["dialer", "listener"])
def test_without_cma_shared_memory_is_left_and_the_reason_told(
    party: Any, refuser: str, caplog: pytest.LogCaptureFixture
) -> None:
    a = party(None, FakeNative("not permitted" if refuser == "dialer" else ""))
    b = party(None, FakeNative("not permitted" if refuser == "listener" else ""))
    peer = a.call(b)
    for side in (a, b):
        side.engine.wait_for(lambda engine: engine.rails() == ["shm"])
    wait_until(lambda: "no cma: not permitted" in a.control.why_not_faster(peer))
    other = b.control.peer(a.card())
    wait_until(lambda: "no cma: not permitted" in b.control.why_not_faster(other))
    assert "cma is not used" in caplog.text
    assert a.control.unreachable(peer, CMA) == "cma: not permitted"
    assert a.control.unreachable(peer, CMA | SHM) == ""


def test_tcp_rails_pair_equal_loopback_addresses(party: Any) -> None:
    a, b = party(rails_of(2, 3, 4)), party(rails_of(2, 3, 4))
    a.call(b)
    wanted = [f"tcp 127.0.0.{n}>127.0.0.{n}" for n in (2, 3, 4)]
    for side in (a, b):
        side.engine.wait_for(lambda engine: engine.rails() == wanted)
    for link in a.engine.links.values():
        with socket.socket(fileno=os.dup(link.fds[0])) as sock:
            assert f"tcp {sock.getsockname()[0]}>{sock.getpeername()[0]}" == link.rail


def test_lists_of_equal_length_pair_by_place(party: Any) -> None:
    a, b = party(rails_of(2, 3)), party(rails_of(13, 12))
    a.call(b)
    a.engine.wait_for(lambda engine: len(engine.links) == 2)
    assert a.engine.rails() == ["tcp 127.0.0.2>127.0.0.13", "tcp 127.0.0.3>127.0.0.12"]
    b.engine.wait_for(lambda engine: len(engine.links) == 2)
    assert b.engine.rails() == ["tcp 127.0.0.12>127.0.0.3", "tcp 127.0.0.13>127.0.0.2"]


def test_ipv6_works(party: Any) -> None:
    settings = Settings(transports=("tcp",), rails=("::1",))
    a, b = party(settings), party(settings)
    a.call(b)
    for side in (a, b):
        side.engine.wait_for(lambda engine: engine.rails() == ["tcp ::1>::1"])


def test_all_interfaces_are_listened_on_with_a_secret(party: Any) -> None:
    with_secret, without = party(Settings(secret=b"s")), party()
    assert all(a.interface == "lo" for a in without.card().addresses)
    assert set(without.card().addresses) != set()
    names = {a.interface for a in with_secret.card().addresses}
    up = {name for _, name in socket.if_nameindex() if has_global_address(name)}
    assert names == up | {"lo"}


def has_global_address(interface: str) -> bool:
    found = {i.name: i for i in topology.interfaces()}[interface]
    return found.up and any(not a.scope for a in found.addresses)


def test_tcp_on_one_host_only_when_it_is_asked_for(party: Any) -> None:
    a, b = party(), party()
    peer = a.call(b)
    a.engine.wait_for(lambda engine: engine.rails() == ["cma", "shm"])
    a.engine.dial(peer, TCP)
    a.engine.wait_for(lambda engine: "tcp 127.0.0.1>127.0.0.1" in engine.rails())


def test_the_engine_hears_when_no_rail_of_a_kind_is_possible(party: Any) -> None:
    a, b = party(None, FakeNative("not permitted")), party(TCP_ONLY)
    peer = a.call(b, SHM | CMA)
    a.engine.wait_for(lambda engine: peer in engine.unreachable)
    assert f"no shm/cma rail to {b.card().name} is possible" in a.engine.unreachable[peer]
    assert "TENT_TRANSPORTS" in a.control.unreachable(peer, SHM | CMA)
    only_cma = party(Settings(transports=("cma",)), FakeNative("not permitted"))
    peer = only_cma.call(party(), CMA)
    only_cma.engine.wait_for(lambda engine: peer in engine.lost)
    assert "not permitted" in only_cma.engine.lost[peer]


def test_both_call_at_once_and_each_rail_has_one_link(party: Any) -> None:
    settings = rails_of(2, 3)
    for _ in range(10):
        a, b = party(settings), party(settings)
        to_b, to_a = a.control.peer(b.card()), b.control.peer(a.card())
        a.engine.dial(to_b)
        b.engine.dial(to_a)
        for side in (a, b):
            side.engine.wait_for(lambda engine: len(engine.links) == 2)
        wait_until(lambda a=a, b=b: set(a.engine.links) == set(b.engine.links))
        assert a.engine.rails() == b.engine.rails()


def test_what_is_advertised_is_what_peers_dial(party: Any) -> None:
    relays: list[Relay] = []

    def through_a_relay(card: Card) -> Card:
        relays.append(Relay(card))
        return relays[0].card()

    a, b = party(TCP_ONLY), party(TCP_ONLY, advertise=through_a_relay)
    try:
        a.call(b)
        b.engine.wait_for(lambda engine: len(engine.links) == 1)
        assert len(relays[0].from_dialer) >= 2
    finally:
        relays[0].close()


def test_many_threads_get_one_peer(party: Any) -> None:
    a, b = party(), party()
    found: list[int] = []
    card = b.card()
    callers = [
        threading.Thread(target=lambda: found.append(a.control.peer(card))) for _ in range(16)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 16
    assert set(found) == {1}
    assert a.engine.names == [b.card().name]


# ---- what goes wrong ----------------------------------------------------------------------------


def test_a_cut_rail_is_redialed_at_once(party: Any) -> None:
    a, b = party(rails_of(2, 3)), party(rails_of(2, 3))
    a.call(b)
    for side in (a, b):
        side.engine.wait_for(lambda engine: len(engine.links) == 2)
    first = next(iter(a.engine.links))
    began = time.monotonic()
    a.engine.cut(first)
    for side in (a, b):
        side.engine.wait_for(lambda e: len(e.links) == 2 and first not in e.links)
    assert time.monotonic() - began < SOON_S
    assert set(a.engine.links) == set(b.engine.links)


def test_a_connection_that_ends_in_the_middle_of_a_try_is_tried_again(
    party: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a reset that comes right after the connection: the socket has no other end."""
    original, failures = dialer.stranger, [errno.ENOTCONN, errno.EINVAL, errno.EMFILE]

    def stranger(sock: socket.socket, dialed: bool) -> str:
        if failures:
            raise OSError(failures.pop(), "injected")
        return original(sock, dialed)

    monkeypatch.setattr(dialer, "stranger", stranger)
    a, b = party(rails_of(2)), party(rails_of(2))
    a.call(b)
    for side in (a, b):
        side.engine.wait_for(lambda engine: len(engine.links) == 1)
    assert failures == []
    assert "unexpectedly" not in caplog.text


def test_a_one_sided_cut_heals_too(party: Any) -> None:
    """The peer has not noticed yet that the link is dead: the new one takes its place."""
    a, b = party(rails_of(2)), party(rails_of(2))
    a.call(b)
    for side in (a, b):
        side.engine.wait_for(lambda engine: len(engine.links) == 1)
    old = next(iter(a.engine.links))
    with b.engine._lock:  # b sees nothing of it until a's new connection is there.
        dead = b.engine.links.pop(old)
        a.engine.cut(old)
        b.engine.links[old] = dead
    for side in (a, b):
        side.engine.wait_for(lambda e: len(e.links) == 1 and old not in e.links)
    assert a.engine.lost == b.engine.lost == {}


def test_a_peer_that_has_ended_is_lost_at_once(party: Any) -> None:
    for settings in (Settings(), rails_of(2, 3), TCP_ONLY):
        a, b = party(settings), party(settings)
        peer = a.call(b)
        a.engine.wait_for(lambda engine: len(engine.links) >= 1)
        b.engine.wait_for(lambda engine: len(engine.links) >= 1)
        b.control.close()
        began = time.monotonic()
        b.engine.close()
        a.engine.wait_for(lambda engine, peer=peer: peer in engine.lost)
        assert time.monotonic() - began < SOON_S
        assert "no process listens" in a.engine.lost[peer]


def test_a_peer_that_never_was_there_is_lost_at_once(party: Any) -> None:
    a, b = party(rails_of(2, 3)), party(rails_of(2, 3))
    card = b.card()
    b.close()
    peer = a.control.peer(card)
    a.engine.dial(peer)
    a.engine.wait_for(lambda engine: peer in engine.lost, timeout=2.0)
    assert "no process listens" in a.engine.lost[peer]


def test_a_restarted_peer_on_the_same_address_is_another_one(party: Any) -> None:
    port = free_port("127.0.0.2")
    settings = Settings(transports=("tcp",), rails=("127.0.0.2",), listen_port=port)
    a, b = party(rails_of(2)), party(settings)
    old = b.card()
    peer = a.call(b)
    a.engine.wait_for(lambda engine: len(engine.links) == 1)
    b.close()
    a.engine.wait_for(lambda engine: peer in engine.lost)
    again = party(settings)
    assert again.card().addresses == old.addresses
    ghost = a.control.peer(old)
    a.engine.dial(ghost)
    a.engine.wait_for(lambda engine: ghost in engine.lost)
    assert a.engine.lost[ghost].startswith("restarted: process")
    a.call(again)
    a.engine.wait_for(lambda engine: len(engine.links) == 1)


def test_a_peer_that_was_given_up_can_be_talked_to_again(party: Any) -> None:
    a, b = party(rails_of(2)), party(rails_of(2))
    first = a.call(b)
    for side in (a, b):
        side.engine.wait_for(lambda engine: len(engine.links) == 1)
    at_b = b.control.peer(a.card())
    a.engine.lose_peer(first, "silent for 10 s")
    # b redials, hears that it was given up, and gives up too.
    b.engine.wait_for(lambda engine: at_b in engine.lost)
    second = a.call(b)
    assert second != first
    for side in (a, b):
        side.engine.wait_for(lambda engine: len(engine.links) == 1)
    assert b.control.peer(a.card()) not in (at_b,)
    assert b.control.card_of(at_b) == a.card()


def test_a_new_session_ends_the_one_that_the_other_side_still_has(party: Any) -> None:
    a, b = party(rails_of(2)), party(rails_of(2))
    first = a.call(b)
    for side in (a, b):
        side.engine.wait_for(lambda engine: len(engine.links) == 1)
    at_b = b.control.peer(a.card())
    with b.engine._lock:  # b has not noticed anything when a's next session begins.
        a.engine.lose_peer(first, "silent for 10 s")
        second = a.control.peer(b.card())
    a.engine.dial(second)
    b.engine.wait_for(lambda engine: at_b in engine.lost)
    a.engine.wait_for(lambda engine: len(engine.links) == 1)
    b.engine.wait_for(lambda engine: len(engine.links) == 1)
