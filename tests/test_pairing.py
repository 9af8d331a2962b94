"""Tests of pairing.py: both sides find the same rails, and none that cannot work."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from torch_tent.card import Address, Card, Host
from torch_tent.pairing import Rail, tcp_rails
from torch_tent.rail_ends import RailEnd
from torch_tent.topology import LocalAddress


def end(*hosts: str, interface: str = "eth0", speed: int = 0) -> RailEnd:
    """An end with addresses such as "10.0.0.1/24"."""
    addresses = []
    for text in hosts:
        host, _, prefix = text.partition("/")
        ip = ipaddress.ip_address(host)
        scope = 2 if ip.version == 6 and ip.is_link_local else 0
        bits = int(prefix) if prefix else 8 if ip.is_loopback else ip.max_prefixlen
        addresses.append(LocalAddress(host, bits, interface, scope))
    return RailEnd(interface, addresses[0].ip.is_loopback, speed, tuple(addresses))


def card(ends: Sequence[RailEnd], listed: bool = False) -> Card:
    addresses = tuple(
        Address(a.host, 4000, e.interface, a.prefix, e.speed_mbit, number)
        for number, e in enumerate(ends)
        for a in e.addresses
    )
    host = Host("boot", 1, 2)
    return Card(bytes(16), host, 1, 0, "n", addresses, listed, ("tcp",), "", 0, 0)


def pairs(rails: Sequence[Rail]) -> list[str]:
    return [f"{r.ways[0].source.host}>{r.ways[0].target.host}" for r in rails]


def between(
    ours: Sequence[RailEnd],
    theirs: Sequence[RailEnd],
    listed: tuple[bool, bool] = (False, False),
    same_network: bool = False,
) -> list[str]:
    return pairs(tcp_rails(ours, listed[0], card(theirs, listed[1]), same_network))


def test_ends_of_one_subnet_find_each_other_whatever_their_order() -> None:
    ours = [end("10.0.1.1/24"), end("10.0.2.1/24", interface="eth1")]
    theirs = [end("10.0.2.2/24"), end("10.0.1.2/24", interface="eth1")]
    assert between(ours, theirs) == ["10.0.1.1>10.0.1.2", "10.0.2.1>10.0.2.2"]


def test_every_end_of_a_shared_subnet_is_used() -> None:
    ours = [end(f"10.0.0.{n}/16") for n in (1, 2)]
    theirs = [end(f"10.0.0.{n}/16") for n in (11, 12, 13)]
    assert between(ours, theirs) == [
        "10.0.0.1>10.0.0.11",
        "10.0.0.2>10.0.0.12",
        "10.0.0.1>10.0.0.13",
    ]


def test_routed_networks_pair_in_order() -> None:
    ours = [end("10.0.1.1/31"), end("10.0.2.1/31")]
    theirs = [end("10.9.1.1/31"), end("10.9.2.1/31")]
    assert between(ours, theirs) == ["10.0.1.1>10.9.1.1", "10.0.2.1>10.9.2.1"]


def test_lists_of_one_length_pair_by_place() -> None:
    ours = [end("10.0.1.1/24"), end("10.0.2.1/24")]
    theirs = [end("10.0.2.2/24"), end("10.0.1.2/24")]
    by_place = ["10.0.1.1>10.0.2.2", "10.0.2.1>10.0.1.2"]
    assert between(ours, theirs, (True, True)) == by_place
    assert between(ours, theirs, (True, False)) != by_place
    assert between(ours, [*theirs, end("10.0.3.2/24")], (True, True)) != by_place


def test_an_interface_with_two_families_is_one_rail_with_two_ways() -> None:
    [rail] = tcp_rails(
        [end("10.0.0.1/24", "fd00::1/64")], False, card([end("10.0.0.2/24", "fd00::2/64")]), False
    )
    ways = [(way.source.host, way.target.host) for way in rail.ways]
    assert ways == [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")]


def test_loopback_reaches_only_within_one_network_namespace() -> None:
    ours = [end("127.0.0.1"), end("10.0.0.1/24")]
    assert between(ours, [end("127.0.0.1")]) == []
    assert between(ours, [end("127.0.0.1"), end("10.0.0.2/24")]) == ["10.0.0.1>10.0.0.2"]
    # Within one namespace all goes over loopback anyway: one rail, not one per interface.
    assert between(ours, ours, same_network=True) == ["127.0.0.1>127.0.0.1"]


def test_equal_loopback_addresses_pair_without_configuration() -> None:
    ours = [end(f"127.0.0.{n}") for n in (2, 3, 4)]
    theirs = [end(f"127.0.0.{n}") for n in (4, 3)]
    found = between(ours, theirs, (True, True), same_network=True)
    assert found == ["127.0.0.3>127.0.0.3", "127.0.0.4>127.0.0.4"]


def test_other_loopback_addresses_pair_in_turn() -> None:
    ours = [end("127.0.0.1")]
    theirs = [end("127.0.0.2"), end("127.0.0.3")]
    found = between(ours, theirs, (False, True), same_network=True)
    assert found == ["127.0.0.1>127.0.0.2", "127.0.0.1>127.0.0.3"]


def test_our_own_address_is_no_other_hosts() -> None:
    """The bridges of container engines have the same address on every host."""
    ours = [end("172.17.0.1/16", interface="docker0"), end("10.0.0.1/24")]
    theirs = [end("172.17.0.1/16", interface="docker0"), end("10.0.0.2/24")]
    assert between(ours, theirs) == ["10.0.0.1>10.0.0.2"]


def test_families_and_scopes_do_not_mix() -> None:
    assert between([end("10.0.0.1/24")], [end("fd00::1/64")]) == []
    assert between([end("fe80::1/64")], [end("fd00::1/64")]) == []
    assert between([end("fe80::1/64")], [end("fe80::2/64")]) == ["fe80::1>fe80::2"]


def test_the_slower_end_gives_the_rate() -> None:
    [rail] = tcp_rails(
        [end("10.0.0.1/24", speed=100_000)], False, card([end("10.0.0.2/24", speed=8000)]), False
    )
    assert rail.rate_hint == 1.0  # bytes per ns
    [rail] = tcp_rails([end("10.0.0.1/24")], False, card([end("10.0.0.2/24")]), False)
    assert rail.rate_hint == 0.0


HOSTS = st.builds(
    lambda net, host, prefix: f"10.0.{net}.{host}/{prefix}",
    st.integers(0, 3),
    st.integers(1, 6),
    st.sampled_from([16, 24, 32]),
)
LISTS = st.lists(HOSTS, max_size=5, unique_by=lambda text: text.partition("/")[0])


@given(LISTS, LISTS, st.booleans(), st.booleans(), st.booleans())
def test_both_sides_find_the_same_rails(
    ours: list[str], theirs: list[str], one: bool, two: bool, same_network: bool
) -> None:
    a, b = [end(text) for text in ours], [end(text) for text in theirs]
    there = between(a, b, (one, two), same_network)
    back = between(b, a, (two, one), same_network)
    assert {tuple(pair.split(">")) for pair in there} == {
        tuple(reversed(pair.split(">"))) for pair in back
    }
    assert len(set(there)) == len(there)
    if not same_network:
        assert not any(pair.split(">")[0] == pair.split(">")[1] for pair in there)
