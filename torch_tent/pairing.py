"""Stage: control. Which of our rail ends to connect with which of a peer's: the rails to try.

Called by the control plane once per peer; pure. What always holds: both sides find the same pairs,
and loopback addresses are paired only where they reach the peer. A rail found here exists only once
a handshake has succeeded on it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from .card import Address, Card
from .rail_ends import RailEnd
from .topology import LocalAddress

BYTES_PER_NS_PER_MBIT = 1e6 / 8 / 1e9


@dataclass(frozen=True)
class Way:
    """From one of our addresses to one of the peer's."""

    source: LocalAddress
    target: Address


@dataclass(frozen=True)
class Rail:
    """A rail to try. `ways` are alternatives, best first; within a host only "tcp" has any."""

    kind: str
    ways: tuple[Way, ...] = ()
    rate_hint: float = 0.0  # bytes per ns, 0: unknown
    own: str = ""  # "rdma": our port, as in "mlx5_0/1"
    theirs: str = ""
    over_unix: bool = False  # "rdma" within a host: the handshake is held over the Unix socket


@dataclass(frozen=True)
class _PeerEnd:
    loopback: bool
    speed_mbit: int
    addresses: tuple[Address, ...]


def tcp_rails(
    own: Sequence[RailEnd], own_listed: bool, peer: Card, same_network: bool
) -> list[Rail]:
    """The TCP rails to try to a peer.

    `same_network`: both are in one network namespace, where loopback reaches from one to the other.
    Ends in one subnet are paired; lists made by hand on both sides, of equal length, are paired in
    their order; in one network namespace equal addresses are.
    """
    ours, theirs = list(own), _peer_ends(peer)
    by_place = own_listed and peer.listed and len(ours) == len(theirs)
    places = [(i, i) for i in range(len(ours))] if by_place else None
    if places is None:
        places = _same_network(ours, theirs) if same_network else _by_subnet(ours, theirs)
    rails = [_rail(ours[i], theirs[j], same_network) for i, j in places]
    return [rail for rail in rails if rail.ways]


def pairs_of(
    ours: list[RailEnd], theirs: list[tuple[Address, ...]], same_host: bool
) -> list[tuple[int, int]]:
    """The ends to join, by place in both lists, for ends that have no loopback: those of one
    subnet; within a host equal ones. A link-local address shares its subnet with every other."""
    ends = [_PeerEnd(False, group[0].speed_mbit, group) for group in theirs]
    return _same_network(ours, ends) if same_host else _by_subnet(ours, ends)


def _peer_ends(card: Card) -> list[_PeerEnd]:
    numbers = sorted({address.rail for address in card.addresses})
    groups = [tuple(a for a in card.addresses if a.rail == number) for number in numbers]
    return [_PeerEnd(_loopback(group[0]), group[0].speed_mbit, group) for group in groups]


def _loopback(address: Address) -> bool:
    return ipaddress.ip_address(address.host).is_loopback


def _same_network(ours: list[RailEnd], theirs: list[_PeerEnd]) -> list[tuple[int, int]]:
    """Within one network namespace everything runs over loopback: one rail is as good as many."""
    equal = [
        (i, j)
        for i, end in enumerate(ours)
        for j, other in enumerate(theirs)
        if {a.host for a in end.addresses} & {a.host for a in other.addresses}
    ]
    loopback = [(i, j) for i, j in equal if ours[i].loopback]
    if equal:
        return loopback or equal
    loop_ours = [i for i, end in enumerate(ours) if end.loopback]
    loop_theirs = [j for j, end in enumerate(theirs) if end.loopback]
    if loop_ours and loop_theirs:
        return _round(loop_ours, loop_theirs)
    return _by_subnet(ours, theirs)


def _by_subnet(ours: list[RailEnd], theirs: list[_PeerEnd]) -> list[tuple[int, int]]:
    """Ends of one subnet with each other, IPv4 before IPv6; then what is left, in order."""
    left = [i for i, end in enumerate(ours) if not end.loopback]
    right = [j for j, end in enumerate(theirs) if not end.loopback]
    pairs: list[tuple[int, int]] = []
    for version in (4, 6):
        near = {(i, j) for i in left for j in right if _neighbours(ours[i], theirs[j], version)}
        while near:
            some_ours, some_theirs = _connected(near)
            pairs += _round(some_ours, some_theirs)
            near = {(i, j) for i, j in near if i not in some_ours and j not in some_theirs}
        left = [i for i in left if i not in {pair[0] for pair in pairs}]
        right = [j for j in right if j not in {pair[1] for pair in pairs}]
    # Routed networks: no subnet in common tells nothing about who reaches whom.
    rest = list(zip(left, right, strict=False)) if pairs else _round(left, right)
    return pairs + rest


def _connected(near: set[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The ends that hang together with the first of the pairs, through any number of pairs."""
    first = min(near)
    some_ours, some_theirs = {first[0]}, {first[1]}
    while True:
        more = [(i, j) for i, j in near if (i in some_ours) != (j in some_theirs)]
        if not more:
            return sorted(some_ours), sorted(some_theirs)
        some_ours |= {i for i, _ in more}
        some_theirs |= {j for _, j in more}


def _round(some_ours: list[int], some_theirs: list[int]) -> list[tuple[int, int]]:
    """Each end of the longer list once, the shorter list as often as needed."""
    if not some_ours or not some_theirs:
        return []
    count = max(len(some_ours), len(some_theirs))
    return [
        (some_ours[k % len(some_ours)], some_theirs[k % len(some_theirs)]) for k in range(count)
    ]


def _neighbours(end: RailEnd, other: _PeerEnd, version: int) -> bool:
    return any(
        _same_subnet(a, b)
        for a in end.addresses
        for b in other.addresses
        if a.ip.version == version
    )


def _same_subnet(ours: LocalAddress, theirs: Address) -> bool:
    ip = ipaddress.ip_address(theirs.host)
    if ip.version != ours.ip.version or ip == ours.ip:
        return False
    back = ipaddress.ip_network(f"{theirs.host}/{theirs.prefix}", strict=False)
    return ip in ours.network and ours.ip in back


def _rail(end: RailEnd, other: _PeerEnd, same_network: bool) -> Rail:
    ways = [Way(a, b) for a in end.addresses for b in other.addresses if _fits(a, b, same_network)]
    ways.sort(key=lambda way: (not _same_subnet(way.source, way.target), way.source.ip.version))
    speeds = [speed for speed in (end.speed_mbit, other.speed_mbit) if speed]
    return Rail("tcp", tuple(ways), min(speeds, default=0) * BYTES_PER_NS_PER_MBIT)


def _fits(ours: LocalAddress, theirs: Address, same_network: bool) -> bool:
    ip = ipaddress.ip_address(theirs.host)
    if ip.version != ours.ip.version or ip.is_loopback != ours.ip.is_loopback:
        return False
    if ip.is_loopback:
        return same_network
    # Elsewhere our own address is another machine's, as with the bridges of container engines.
    scoped = ip.is_link_local and ip.version == 6
    return scoped == bool(ours.scope) and (same_network or ip != ours.ip)
