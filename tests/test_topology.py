"""Tests of topology.py and rail_ends.py: what the kernel says, and what TENT_RAILS makes of it."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from torch_tent import topology
from torch_tent.errors import SettingsError
from torch_tent.rail_ends import RailEnd, rail_ends
from torch_tent.settings import Settings
from torch_tent.topology import Interface, LocalAddress

LO = Interface(
    "lo", True, True, 0, -1, (LocalAddress("127.0.0.1", 8, "lo"), LocalAddress("::1", 128, "lo"))
)
ETH0 = Interface(
    "eth0",
    True,
    False,
    100_000,
    1,
    (
        LocalAddress("fe80::1", 64, "eth0", 2),
        LocalAddress("fd00::1", 64, "eth0"),
        LocalAddress("10.0.0.1", 24, "eth0"),
    ),
)
ETH1 = Interface("eth1", True, False, 0, -1, (LocalAddress("10.0.1.1", 24, "eth1"),))
DOWN = Interface("eth2", False, False, 0, -1, (LocalAddress("10.0.2.1", 24, "eth2"),))
BARE = Interface("eth3", True, False, 0, -1, ())
ALL = [LO, ETH0, ETH1, DOWN, BARE]


def hosts(ends: list[RailEnd]) -> list[list[str]]:
    return [[address.host for address in end.addresses] for end in ends]


def listed(*entries: str, secret: bytes | None = b"s") -> list[list[str]]:
    return hosts(rail_ends(Settings(rails=entries, secret=secret), ALL))


# ---- what the kernel says ------------------------------------------------------------------------


def test_the_interfaces_are_those_of_the_kernel() -> None:
    found = {interface.name: interface for interface in topology.interfaces()}
    assert set(found) == {name for _, name in socket.if_nameindex()}
    assert found["lo"].loopback
    assert LocalAddress("127.0.0.1", 8, "lo") in found["lo"].addresses
    for name, interface in found.items():
        state = Path(f"/sys/class/net/{name}/operstate").read_text().strip()
        assert interface.up == (state in ("up", "unknown"))


def test_scoped_addresses_know_their_interface() -> None:
    index = {name: number for number, name in socket.if_nameindex()}
    for interface in topology.interfaces():
        for address in interface.addresses:
            link_local = address.ip.version == 6 and address.ip.is_link_local
            assert address.scope == (index[interface.name] if link_local else 0)
            assert address.ip in address.network


def test_a_process_on_this_host_has_this_identity() -> None:
    host = topology.this_host()
    assert host == topology.this_host()
    assert re.fullmatch(r"[0-9a-f-]{36}", host.boot_id)
    assert host.network == os.stat("/proc/self/ns/net").st_ino
    assert host.same_network(topology.this_host())


def test_memory_limits_are_read() -> None:
    memory = topology.memory()
    assert memory.memlock_bytes == -1 or memory.memlock_bytes >= 0
    assert memory.transparent_huge_pages in ("always", "madvise", "never", "")
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    assert (memory.ptrace_scope is None) == (not yama.exists())


@pytest.mark.parametrize("host", ["127.0.0.5", "::1"])
def test_the_owner_of_a_socket_is_found(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as door,
        socket.create_connection(door.getsockname()[:2]) as dialed,
    ):
        here, there = dialed.getsockname()[:2], door.getsockname()[:2]
        assert topology.socket_owner(here, there) == os.geteuid()
        assert topology.listener_owner(there) == os.geteuid()
        assert topology.socket_owner(("127.0.0.9", 1), ("127.0.0.9", 2)) is None
    assert topology.listener_owner(there) is None


# ---- what TENT_RAILS makes of it -----------------------------------------------------------------


def test_everything_usable_with_a_secret_and_loopback_without() -> None:
    usable = [["127.0.0.1", "::1"], ["10.0.0.1", "fd00::1"], ["10.0.1.1"]]
    assert hosts(rail_ends(Settings(secret=b"s"), ALL)) == usable
    assert hosts(rail_ends(Settings(), ALL)) == usable[:1]


def test_entries_are_interfaces_addresses_and_subnets_in_their_order() -> None:
    assert listed("eth1", "10.0.0.1") == [["10.0.1.1"], ["10.0.0.1"]]
    assert listed("10.0.0.0/16") == [["10.0.0.1"], ["10.0.1.1"]]
    assert listed("fd00::/8", "::1") == [["fd00::1"], ["::1"]]
    assert listed("eth0") == [["10.0.0.1", "fd00::1"]]


def test_any_loopback_address_can_be_named() -> None:
    assert listed("127.0.0.2", "127.8.8.8", secret=None) == [["127.0.0.2"], ["127.8.8.8"]]


def test_scoped_addresses_need_their_interface() -> None:
    assert listed("fe80::1%eth0") == [["fe80::1"]]
    with pytest.raises(SettingsError, match=r"fe80::1, which needs its interface: .*fe80::1%eth0"):
        listed("fe80::1")
    with pytest.raises(SettingsError, match="no address of this host"):
        listed("fe80::1%eth1")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("eth9", "no interface of this host.*the interfaces are lo, eth0"),
        ("10.9.9.9", "no address of this host that is up; the addresses are 127.0.0.1"),
        ("10.9.0.0/16", "no address of this host"),
        ("10.0.2.0/24", "no address of this host"),  # Its interface is down.
        ("eth2", "interface eth2 is down: bring it up"),
        ("10.0.2.1", "interface eth2 is down: bring it up"),
        ("eth3", "interface eth3 has no address"),
        ("10.0.0.300", "no interface of this host, no address"),
    ],
)
def test_an_entry_that_matches_nothing_is_an_error(entry: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        listed("eth0", entry)
    assert "TENT_RAILS" in str(caught.value)
    assert entry in str(caught.value)


def test_an_address_that_two_entries_name_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"10\.0\.0\.1 twice"):
        listed("eth0", "10.0.0.0/24")


@pytest.mark.parametrize("entry", ["eth0", "10.0.0.1", "10.0.0.0/8"])
def test_a_public_address_needs_a_secret(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"other hosts can reach, but there is no secret"):
        listed("127.0.0.1", entry, secret=None)
