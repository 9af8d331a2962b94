"""Stage: control. What this host has: interfaces and their addresses, memory limits, namespaces.

Read once when an engine is made, and by doctor; any thread. Reads /sys and /proc and getifaddrs,
changes nothing. What always holds: every address returned is one that this process can listen on.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import resource
import socket
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .card import Host

IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40  # <net/if.h>
PR_SET_PTRACER = 0x59616D61  # <linux/prctl.h>
SYS_NET = Path("/sys/class/net")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class LocalAddress:
    """One address of this host: the text without scope, its subnet's prefix, its interface."""

    host: str
    prefix: int
    interface: str
    scope: int = 0  # interface index where the address needs it (fe80::/10), else 0

    @property
    def ip(self) -> IpAddress:
        return ipaddress.ip_address(self.host)

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The subnet that the address lies in."""
        return ipaddress.ip_network(f"{self.host}/{self.prefix}", strict=False)


@dataclass(frozen=True)
class Interface:
    """One network interface. `speed_mbit` is 0 and `numa_node` -1 where they are not known."""

    name: str
    up: bool
    loopback: bool
    speed_mbit: int
    numa_node: int
    addresses: tuple[LocalAddress, ...]


@dataclass(frozen=True)
class Memory:
    """What the kernel allows with memory. -1: unlimited."""

    memlock_bytes: int
    transparent_huge_pages: str  # always, madvise, never, or "" where unknown
    shared_huge_pages: str  # the same for shared memory
    huge_pages_free: int
    ptrace_scope: int | None  # None: no Yama, nothing beyond the user's identity is asked


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_uint16), ("data", ctypes.c_uint8 * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
    ("netmask", ctypes.POINTER(_SockAddr)),
]


def interfaces() -> list[Interface]:
    """The interfaces of this network namespace, by index; also those that are down."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the interfaces cannot be listed: {os.strerror(number)}")
    try:
        flags, addresses = _collect(first)
    finally:
        libc.freeifaddrs(first)
    order = {name: index for index, name in socket.if_nameindex()}
    return [
        Interface(
            name=name,
            up=bool(flags[name] & IFF_UP) and bool(flags[name] & IFF_RUNNING),
            loopback=bool(flags[name] & IFF_LOOPBACK),
            speed_mbit=max(0, _number(SYS_NET / name / "speed", 0)),
            numa_node=_number(SYS_NET / name / "device/numa_node", -1),
            addresses=tuple(addresses.get(name, [])),
        )
        for name in sorted(flags, key=lambda name: order.get(name, 0))
    ]


def _collect(
    first: ctypes._Pointer[_IfAddrs],
) -> tuple[dict[str, int], dict[str, list[LocalAddress]]]:
    flags: dict[str, int] = {}
    addresses: dict[str, list[LocalAddress]] = {}
    entry = first
    while entry:
        item = entry.contents
        # An alias such as eth0:1 is an address of eth0, not an interface.
        name = item.name.decode().partition(":")[0]
        flags[name] = flags.get(name, 0) | item.flags
        found = _address(name, item)
        if found is not None:
            addresses.setdefault(name, []).append(found)
        entry = item.next
    return flags, addresses


def _address(name: str, item: _IfAddrs) -> LocalAddress | None:
    if not item.address or not item.netmask:
        return None
    data, mask = bytes(item.address.contents.data), bytes(item.netmask.contents.data)
    if item.address.contents.family == socket.AF_INET:
        return LocalAddress(str(ipaddress.IPv4Address(data[2:6])), _bits(mask[2:6]), name)
    if item.address.contents.family == socket.AF_INET6:
        ip = ipaddress.IPv6Address(data[6:22])
        scope = struct.unpack_from("=I", data, 22)[0] if ip.is_link_local else 0
        return LocalAddress(str(ip), _bits(mask[6:22]), name, scope)
    return None


def _bits(mask: bytes) -> int:
    return int.from_bytes(mask, "big").bit_count()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path, missing: int) -> int:
    with contextlib.suppress(ValueError):
        return int(_text(path))
    return missing


def memory() -> Memory:
    """What the kernel allows this process with memory."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    meminfo = _text(Path("/proc/meminfo")).splitlines()
    free = [line.split()[1] for line in meminfo if line.startswith("HugePages_Free:")]
    pages = Path("/sys/kernel/mm/transparent_hugepage")
    scope = _number(Path("/proc/sys/kernel/yama/ptrace_scope"), -1)
    return Memory(
        memlock_bytes=-1 if limit == resource.RLIM_INFINITY else limit,
        transparent_huge_pages=_chosen(_text(pages / "enabled")),
        shared_huge_pages=_chosen(_text(pages / "shmem_enabled")),
        huge_pages_free=int(free[0]) if free else 0,
        ptrace_scope=None if scope < 0 else scope,
    )


def _chosen(text: str) -> str:
    """The word in brackets of a line such as "always [madvise] never"."""
    return text.partition("[")[2].partition("]")[0]


def allow_reading() -> bool:
    """Where Yama lets only ancestors read a process, lets the others of its user do so, too.

    Returns whether that was necessary.
    """
    if memory().ptrace_scope != 1:
        return False
    anybody = ctypes.c_ulong(-1)
    return bool(ctypes.CDLL(None).prctl(PR_SET_PTRACER, anybody, 0, 0, 0) == 0)


def this_host() -> Host:
    """The kernel and the namespaces that this process runs in."""
    boot = _text(Path("/proc/sys/kernel/random/boot_id"))
    # Without an identity no other process may take itself for a neighbour.
    return Host(boot or f"unknown-{uuid.uuid4()}", _namespace("net"), _namespace("pid"))


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0


def socket_owner(local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """The user id of the TCP socket of this host that is bound to `local` and connected to
    `remote`; None where there is none."""
    family = ipaddress.ip_address(local[0]).version
    wanted = (_proc_address(local), _proc_address(remote))
    for columns in _proc_sockets("/proc/net/tcp6" if family == 6 else "/proc/net/tcp"):
        if (columns[1], columns[2]) == wanted:
            return int(columns[7])
    return None


def listener_owner(address: tuple[str, int]) -> int | None:
    """The user id of the TCP socket of this host that listens on `address`, maybe among others."""
    anywhere = "::" if ipaddress.ip_address(address[0]).version == 6 else "0.0.0.0"
    found = socket_owner(address, (anywhere, 0))
    return socket_owner((anywhere, address[1]), (anywhere, 0)) if found is None else found


def _proc_sockets(path: str) -> Iterator[list[str]]:
    with contextlib.suppress(OSError), open(path) as lines:
        next(lines, None)
        for line in lines:
            yield line.split()


def _proc_address(address: tuple[str, int]) -> str:
    """An address as /proc/net/tcp writes it: 32-bit words in the byte order of the machine."""
    packed = ipaddress.ip_address(address[0]).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
