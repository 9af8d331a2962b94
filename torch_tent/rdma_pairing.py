"""Stage: control. Which of our RDMA ports to join with which of a peer's: the RDMA rails to try.

Called by the control plane once per peer; pure. What always holds: both sides find the same pairs,
as for TCP rails; a rail found here exists only once a byte has crossed between the two ports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .card import Address, Card, CardPort
from .pairing import BYTES_PER_NS_PER_MBIT, Rail, Way, pairs_of
from .rail_ends import RailEnd
from .rdma_ports import ADAPTER, ETHERNET, RdmaPort
from .topology import Interface, LocalAddress

INFINIBAND_PREFIX = 64  # of a GID, its subnet
LONE_PREFIX = {4: 24, 6: 64}  # of a GID whose interface has no such address


@dataclass(frozen=True)
class OwnPort:
    """One of our ports that is ready, and the subnet of its address."""

    port: RdmaPort
    prefix: int

    @property
    def name(self) -> str:
        return f"{self.port.device}/{self.port.number}"

    @property
    def gid_index(self) -> int:
        return self.port.gids[0].index

    @property
    def on_card(self) -> CardPort:
        """As peers get to see it."""
        port = self.port
        address = str(port.gids[0].ip)
        return CardPort(self.name, port.link_layer, address, self.prefix, port.rate_mbit)


def own_ports(
    found: Sequence[RdmaPort], interfaces: Sequence[Interface], named: bool
) -> tuple[OwnPort, ...]:
    """The ports on which a rail can end; of those that were `named` also such as are down and may
    come up."""
    usable = [port for port in found if not port.trouble or (named and _may_come_up(port))]
    return tuple(OwnPort(port, _prefix(port, interfaces)) for port in usable)


def _may_come_up(port: RdmaPort) -> bool:
    return port.node_type == ADAPTER and bool(port.gids and port.uverbs)


def _prefix(port: RdmaPort, interfaces: Sequence[Interface]) -> int:
    if port.link_layer != ETHERNET:
        return INFINIBAND_PREFIX
    ip = port.gids[0].ip
    for interface in interfaces:
        for address in interface.addresses:
            if address.ip == ip:
                return address.prefix
    return LONE_PREFIX[ip.version]


def rdma_rails(
    own: Sequence[OwnPort], peer: Card, same_host: bool, ways: tuple[Way, ...], unix: bool
) -> list[Rail]:
    """The RDMA rails to try to a peer, Ethernet with Ethernet and InfiniBand with InfiniBand.

    `same_host`: equal ports are joined, which works within a device. `ways` lead to the peer's
    doors, where the handshake is held; `unix`: it is held over the Unix socket.
    """
    rails = []
    for layer in sorted({one.port.link_layer for one in own}):
        ours = [one for one in own if one.port.link_layer == layer]
        theirs = [one for one in peer.ports if one.link_layer == layer]
        ends = [_end(one.on_card) for one in ours]
        for i, j in pairs_of(ends, [_addresses(one) for one in theirs], same_host):
            speeds = [s for s in (ours[i].port.rate_mbit, theirs[j].rate_mbit) if s]
            hint = min(speeds, default=0) * BYTES_PER_NS_PER_MBIT
            names = (ours[i].name, theirs[j].name)
            rails.append(Rail("rdma", () if unix else ways, hint, *names, over_unix=unix))
    return rails


def _end(port: CardPort) -> RailEnd:
    address = LocalAddress(port.address, port.prefix, port.name)
    return RailEnd(port.name, False, port.rate_mbit, (address,))


def _addresses(port: CardPort) -> tuple[Address, ...]:
    return (Address(port.address, 1, "", port.prefix, port.rate_mbit),)
