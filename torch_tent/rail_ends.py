"""Stage: control. Our ends of the TCP rails: which addresses of this host an engine listens on.

Called once when an engine is made, and by doctor; any thread; pure. What always holds: without a
secret every end is a loopback address, and an entry of `Settings.rails` that matches nothing is an
error, never silently "all".
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from .errors import SettingsError
from .settings import Settings
from .topology import Interface, LocalAddress

LOOPBACK_V4 = ipaddress.ip_network("127.0.0.0/8")


@dataclass(frozen=True)
class RailEnd:
    """One end: addresses of one interface, any of which will do. Tried in this order."""

    interface: str
    loopback: bool
    speed_mbit: int
    addresses: tuple[LocalAddress, ...]


def rail_ends(settings: Settings, found: list[Interface]) -> list[RailEnd]:
    """The ends that the settings ask for, one per interface, or one per entry of `rails`.

    Raises SettingsError for an entry that matches nothing that is up, and for an address that other
    hosts can reach when there is no secret.
    """
    if settings.rails is None:
        ends = [end for interface in found if interface.up for end in _whole(interface)]
        if settings.secret is None:
            ends = [end for end in ends if end.loopback]
        return ends
    ends = [end for entry in settings.rails for end in _named(entry, found)]
    listed = [address.host for end in ends for address in end.addresses]
    for host in listed:
        if listed.count(host) > 1:
            raise SettingsError(f"rails (TENT_RAILS) lists {host} twice: name each address once")
    for end in ends:
        if settings.secret is None and not end.loopback:
            raise SettingsError(
                f"rails (TENT_RAILS) asks for {end.addresses[0].host} on {end.interface}, which "
                "other hosts can reach, but there is no secret: set TENT_SECRET (the same on all "
                "hosts), or list loopback addresses only"
            )
    return ends


def _whole(interface: Interface) -> list[RailEnd]:
    """An interface as one end: IPv4 before IPv6; scoped addresses only when asked for."""
    plain = [address for address in interface.addresses if not address.scope]
    return _end(interface, sorted(plain, key=lambda address: address.ip.version))


def _end(interface: Interface, addresses: list[LocalAddress]) -> list[RailEnd]:
    if not addresses:
        return []
    facts = (interface.name, interface.loopback, interface.speed_mbit)
    return [RailEnd(*facts, tuple(addresses))]


def _named(entry: str, found: list[Interface]) -> list[RailEnd]:
    """The ends that one entry of `rails` names: an interface, an address or a subnet."""
    for interface in found:
        if interface.name == entry:
            return _checked(entry, interface, _whole(interface))
    text, _, zone = entry.partition("%")
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        names = ", ".join(interface.name for interface in found)
        raise SettingsError(
            f"rails (TENT_RAILS) names {entry!r}, which is no interface of this host, no address "
            f"and no subnet; the interfaces are {names}"
        ) from None
    if "/" not in entry:
        return _by_address(entry, network.network_address, zone, found)
    ends = []
    for interface in found:
        inside = [a for a in interface.addresses if not a.scope and a.ip in network]
        ends += _end(interface, inside) if interface.up else []
    return ends or _nothing(entry, found)


def _by_address(
    entry: str,
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
    zone: str,
    found: list[Interface],
) -> list[RailEnd]:
    for interface in found:
        if zone and interface.name != zone:
            continue
        for address in interface.addresses:
            if address.ip == ip and (zone or not address.scope):
                return _checked(entry, interface, _end(interface, [address]))
        if interface.loopback and ip in LOOPBACK_V4:  # The kernel owns all of 127.0.0.0/8.
            here = LocalAddress(str(ip), 8, interface.name)
            return _checked(entry, interface, _end(interface, [here]))
    if ip.is_link_local and ip.version == 6 and not zone:
        raise SettingsError(
            f"rails (TENT_RAILS) names {entry}, which needs its interface: write {entry}%eth0"
        )
    return _nothing(entry, found)


def _checked(entry: str, interface: Interface, ends: list[RailEnd]) -> list[RailEnd]:
    if not interface.up:
        raise SettingsError(
            f"rails (TENT_RAILS) names {entry}, but interface {interface.name} is down: bring it "
            f"up (ip link set {interface.name} up) or leave it out"
        )
    if not ends:
        raise SettingsError(
            f"rails (TENT_RAILS) names {entry}, but interface {interface.name} has no address"
        )
    return ends


def _nothing(entry: str, found: list[Interface]) -> list[RailEnd]:
    here = [f"{a.host} ({i.name})" for i in found if i.up for a in i.addresses if not a.scope]
    raise SettingsError(
        f"rails (TENT_RAILS) names {entry}, which is no address of this host that is up; "
        f"the addresses are {', '.join(here) or 'none'}"
    )
