"""Stage: control. Every port of every RDMA device of this host, as the kernel shows them in sysfs.

Read once when an engine is made, and by doctor; any thread. Reads /sys, opens no device, changes
nothing. What always holds: a port that is returned exists; whether it can be a rail's end is said
by `RdmaPort.trouble`, in words.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
ETHERNET, INFINIBAND = "Ethernet", "InfiniBand"
ACTIVE, ADAPTER = "ACTIVE", "CA"
# What RoCE puts around a packet's payload: network and UDP header, base and extended transport
# headers, checksum. The kernel subtracts the same before it rounds down to a path MTU.
ROCE_OVERHEAD_BYTES = 40 + 8 + 12 + 4 + 28 + 4
PATH_MTUS = (4096, 2048, 1024, 512, 256)
# The kernel puts a new GID into the first free place of a table that may have 1024: behind so many
# empty ones nothing is expected.
EMPTY_RUN = 64
PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Gid:
    """One entry of a port's address table."""

    index: int
    raw: ipaddress.IPv6Address
    kind: str  # "IB", "RoCE v1" or "RoCE v2"
    interface: str  # the network interface that it belongs to; "" on InfiniBand

    @property
    def ip(self) -> IpAddress:
        """The address as IP knows it: RoCE writes IPv4 as an IPv6 address that holds it."""
        return self.raw.ipv4_mapped or self.raw


@dataclass(frozen=True)
class RdmaPort:
    """One port of one device. Its GIDs are in the order in which they are to be tried."""

    device: str  # as in "mlx5_0"
    node_type: str  # "CA": InfiniBand or RoCE; "RNIC": iWARP; others, as EFA's, "unspecified"
    number: int
    state: str  # "ACTIVE", "DOWN", "INIT", ...
    link_layer: str  # "Ethernet" (RoCE) or "InfiniBand"
    rate_mbit: int  # 0: unknown
    lid: int  # InfiniBand's address within its subnet; 0 on Ethernet
    path_mtu_bytes: int  # 0: only the driver knows (InfiniBand, or an interface elsewhere)
    numa_node: int  # -1: unknown
    pci_path: tuple[str, ...]  # PCI addresses from the root to the device; () for software devices
    uverbs: str  # its file in /dev/infiniband; "": ib_uverbs is not loaded
    gids: tuple[Gid, ...]

    @property
    def name(self) -> str:
        """How people, TENT_RDMA_DEVICES and reports name it."""
        return f"{self.device}:{self.number}"

    @property
    def gid(self) -> Gid | None:
        """The first GID to try."""
        return self.gids[0] if self.gids else None

    @property
    def trouble(self) -> str:
        """Why no rail can end here, and what to do; "" if one can."""
        if self.node_type != ADAPTER:
            kind = self.node_type or "of an unknown kind"
            return f"device {self.device} is {kind}: only InfiniBand and RoCE become rails"
        if self.state != ACTIVE:
            fix = (
                "bring its network interface up (ip link) and look at the cable"
                if self.link_layer == ETHERNET
                else "look at the cable and whether a subnet manager runs (sminfo)"
            )
            return f"port {self.name} is {self.state or 'in an unknown state'}: {fix}"
        if not self.gids:
            fix = (
                "give its network interface an IP address (ip addr), or name a GID"
                if self.link_layer == ETHERNET
                else "see whether a subnet manager runs (sminfo)"
            )
            return f"port {self.name} has no GID: {fix}"
        if not self.uverbs:
            return f"device {self.device} has no file in /dev/infiniband: modprobe ib_uverbs"
        return ""


def rdma_ports(sys: Path = SYS) -> list[RdmaPort]:
    """All ports, devices in the order of their names and numbers (mlx5_2 before mlx5_10)."""
    files = _verbs_files(sys)
    return [
        _port(sys, device, folder, files.get(device.name, ""))
        for device in sorted((sys / "class/infiniband").glob("*"), key=_natural)
        for folder in sorted((device / "ports").glob("[0-9]*"), key=_natural)
    ]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts the numbers in a name by their value."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _verbs_files(sys: Path) -> dict[str, str]:
    """Which /dev/infiniband/uverbs* is which device's."""
    folders = (sys / "class/infiniband_verbs").glob("uverbs*")
    return {_text(folder / "ibdev"): folder.name for folder in folders}


def _port(sys: Path, device: Path, folder: Path, uverbs: str) -> RdmaPort:
    link_layer = _text(folder / "link_layer")
    gids = _gids(sys, folder, link_layer)
    return RdmaPort(
        device=device.name,
        node_type=_text(device / "node_type").partition(": ")[2],
        number=int(folder.name),
        state=_text(folder / "state").partition(": ")[2],
        link_layer=link_layer,
        rate_mbit=_rate_mbit(_text(folder / "rate")),
        lid=_number(folder / "lid", 0) if link_layer == INFINIBAND else 0,
        path_mtu_bytes=_path_mtu(sys, gids[0].interface) if gids else 0,
        numa_node=_number(device / "device/numa_node", -1),
        pci_path=tuple(PCI_ADDRESS.findall(str((device / "device").resolve()))),
        uverbs=uverbs,
        gids=gids,
    )


def _gids(sys: Path, folder: Path, link_layer: str) -> tuple[Gid, ...]:
    """A port's usable GIDs, best first."""
    found: list[Gid] = []
    place = 0
    while place - (found[-1].index if found else 0) <= EMPTY_RUN:
        text = _text(folder / f"gids/{place}")
        if not text:
            break  # Behind the end of the table.
        raw = ipaddress.IPv6Address(text)
        if int(raw) & ((1 << 64) - 1):  # Not an empty place, which may have a subnet's prefix.
            found.append(_gid(folder, place, raw, link_layer))
        place += 1
    return tuple(sorted(found, key=lambda gid: _merit(sys, gid)))


def _gid(folder: Path, place: int, raw: ipaddress.IPv6Address, link_layer: str) -> Gid:
    # The kernel calls the other kind "IB/RoCE v1", whatever the link layer.
    second = _text(folder / f"gid_attrs/types/{place}") == "RoCE v2"
    kind = ("RoCE v2" if second else "RoCE v1") if link_layer == ETHERNET else "IB"
    return Gid(place, raw, kind, _text(folder / f"gid_attrs/ndevs/{place}"))


def _merit(sys: Path, gid: Gid) -> tuple[bool, bool, bool, bool, int]:
    """Sorts the better GID first: RoCE v2, which is routed and balanced as UDP, before v1; one
    whose interface this network namespace has; an address with a scope of its own last, because
    every port of the world has the same subnet fe80::/64; IPv4 first, as for TCP rails."""
    away = bool(gid.interface) and not (sys / "class/net" / gid.interface).exists()
    local = gid.ip.is_link_local
    return (gid.kind == "RoCE v1", away, local, gid.ip.version == 6, gid.index)


def _path_mtu(sys: Path, interface: str) -> int:
    """The largest path MTU whose packets an interface carries; 0 where it is not known."""
    room = _number(sys / "class/net" / interface / "mtu", 0) - ROCE_OVERHEAD_BYTES
    return next((mtu for mtu in PATH_MTUS if mtu <= room), 0) if interface else 0


def _rate_mbit(text: str) -> int:
    """Of "100 Gb/sec (4X EDR)" the 100,000."""
    match = re.match(r"(\d+(?:\.\d+)?) Gb/sec", text)
    return int(float(match.group(1)) * 1000) if match else 0


def _text(path: Path) -> str:
    """A file's text; "" where it is missing or, as for empty GIDs, refuses to be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path, missing: int) -> int:
    with contextlib.suppress(ValueError):
        return int(_text(path), 0)
    return missing
