"""Stage: tests. A folder that looks like /sys of a host with RDMA devices.

Files, empty places in GID tables and links lie as the kernel lays them. Used by the tests of
discovery and of doctor; each test makes one below its own tmp_path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

EMPTY = "0000:0000:0000:0000:0000:0000:0000:0000"
ZEROS_OF_A_SUBNET = "fe80:0000:0000:0000:0000:0000:0000:0000"


@dataclass(frozen=True)
class FakePort:
    """A port's files. GIDs: place in the table to (address, type, network interface)."""

    state: str = "4: ACTIVE"
    link_layer: str = "Ethernet"
    rate: str = "100 Gb/sec (4X EDR)"
    lid: str = "0x0"
    gids: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    places: int = 8


@dataclass(frozen=True)
class FakeSysfs:
    """The root, to be given to `rdma_ports`."""

    root: Path

    def interface(self, name: str, mtu: int = 1500) -> None:
        """A network interface of this namespace."""
        folder = self.root / "class/net" / name
        folder.mkdir(parents=True)
        (folder / "mtu").write_text(f"{mtu}\n")

    def device(
        self,
        name: str,
        ports: list[FakePort],
        pci: str = "",
        numa: int = 0,
        uverbs: int = -1,
        node_type: str = "1: CA",
    ) -> None:
        """A device; `pci` is its place below the root complex, "" for one made of software."""
        parent = self.root / "devices" / (pci or "virtual")
        home = parent / "infiniband" / name
        home.mkdir(parents=True)
        (home / "node_type").write_text(f"{node_type}\n")
        if pci:
            (parent / "numa_node").write_text(f"{numa}\n")
            (home / "device").symlink_to(parent, target_is_directory=True)
        for number, port in enumerate(ports, 1):
            _write_port(home / "ports" / str(number), port)
        listed = self.root / "class/infiniband"
        listed.mkdir(parents=True, exist_ok=True)
        (listed / name).symlink_to(home, target_is_directory=True)
        if uverbs >= 0:
            folder = self.root / f"class/infiniband_verbs/uverbs{uverbs}"
            folder.mkdir(parents=True)
            (folder / "ibdev").write_text(f"{name}\n")


def _write_port(folder: Path, port: FakePort) -> None:
    (folder / "gids").mkdir(parents=True)
    for name in ("state", "link_layer", "rate", "lid"):
        (folder / name).write_text(f"{getattr(port, name)}\n")
    empty = EMPTY if port.link_layer == "Ethernet" else ZEROS_OF_A_SUBNET
    for place in range(port.places):
        address, kind, interface = port.gids.get(place, (empty, "", ""))
        (folder / "gids" / str(place)).write_text(f"{address}\n")
        for attribute, text in (("types", kind), ("ndevs", interface)):
            path = folder / "gid_attrs" / attribute / str(place)
            path.parent.mkdir(parents=True, exist_ok=True)
            if text:  # The kernel refuses to read these of an empty place; here they are missing.
                path.write_text(f"{text}\n")


def v4(address: str) -> str:
    """An IPv4 address as a GID table writes it."""
    a, b, c, d = map(int, address.split("."))
    return f"0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"


def roce_gids(interface: str, link_local: str, address: str) -> dict[int, tuple[str, str, str]]:
    """What a driver fills in for an interface with one IPv4 address: each as v1 and as v2."""
    found = {}
    for place, text in ((0, link_local), (2, v4(address))):
        found[place] = (text, "IB/RoCE v1", interface)
        found[place + 1] = (text, "RoCE v2", interface)
    return found
