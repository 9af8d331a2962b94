"""Tests of rdma_ports.py and rdma_choice.py: what sysfs says, and what TENT_RDMA_DEVICES makes of
it, on trees as the kernel lays them out for RoCE, InfiniBand and software devices."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest

from tests.fake_sysfs import FakePort, FakeSysfs, roce_gids, v4
from torch_tent.errors import SettingsError
from torch_tent.rdma_choice import chosen_ports
from torch_tent.rdma_ports import RdmaPort, rdma_ports

LINK_LOCAL = "fe80:0000:0000:0000:ba59:9fff:fe12:3456"
ROOT_A = "pci0000:16/0000:16:02.0/0000:17:00.0"
ROOT_B = "pci0000:64/0000:64:02.0/0000:65:00.0/0000:66:10.0/0000:68:00.1"


@pytest.fixture
def sys(tmp_path: Path) -> FakeSysfs:
    """A server with two RoCE ports, an InfiniBand device with a port down, and soft-RoCE."""
    fake = FakeSysfs(tmp_path)
    for name, mtu in (("ens1", 9000), ("ens2", 1500), ("eth0", 4200)):
        fake.interface(name, mtu)
    fake.device("mlx5_10", [FakePort(gids=roce_gids("ens2", LINK_LOCAL, "10.0.1.5"))], ROOT_B, 1, 1)
    fake.device("mlx5_2", [FakePort(gids=roce_gids("ens1", LINK_LOCAL, "10.0.0.5"))], ROOT_A, 0, 0)
    infiniband = {0: ("fe80:0000:0000:0000:506b:4b03:00c8:c0a6", "IB/RoCE v1", "")}
    up = FakePort("4: ACTIVE", "InfiniBand", "200 Gb/sec (4X HDR)", "0x1c", infiniband)
    down = FakePort("1: DOWN", "InfiniBand", "10 Gb/sec (4X SDR)", "0xffff")
    fake.device("ibp0", [up, down], "pci0000:b0/0000:b0:01.0/0000:b1:00.0", -1, 2)
    soft = {0: (LINK_LOCAL, "RoCE v2", "eth0"), 1: (v4("192.168.0.2"), "RoCE v2", "eth0")}
    fake.device("rxe0", [FakePort(rate="2.5 Gb/sec (1X SDR)", gids=soft)], uverbs=3)
    return fake


def by_name(fake: FakeSysfs) -> dict[str, RdmaPort]:
    return {port.name: port for port in rdma_ports(fake.root)}


def names(ports: list[RdmaPort]) -> list[str]:
    return [port.name for port in ports]


# ---- what sysfs says -----------------------------------------------------------------------------


def test_every_port_is_found_in_the_order_of_its_number(sys: FakeSysfs) -> None:
    found = names(rdma_ports(sys.root))
    assert found == ["ibp0:1", "ibp0:2", "mlx5_2:1", "mlx5_10:1", "rxe0:1"]


def test_no_device_is_no_port(tmp_path: Path) -> None:
    assert rdma_ports(tmp_path) == []


def test_a_roce_port(sys: FakeSysfs) -> None:
    port = by_name(sys)["mlx5_2:1"]
    assert (port.state, port.link_layer, port.rate_mbit) == ("ACTIVE", "Ethernet", 100_000)
    assert (port.lid, port.numa_node, port.uverbs) == (0, 0, "uverbs0")
    assert port.pci_path == ("0000:16:02.0", "0000:17:00.0")
    assert port.gid is not None
    assert (port.gid.index, port.gid.kind, port.gid.interface) == (3, "RoCE v2", "ens1")
    assert port.gid.ip == ipaddress.ip_address("10.0.0.5")
    assert port.path_mtu_bytes == 4096
    assert port.trouble == ""


def test_the_path_below_several_switches_is_whole(sys: FakeSysfs) -> None:
    path = by_name(sys)["mlx5_10:1"].pci_path
    assert path == ("0000:64:02.0", "0000:65:00.0", "0000:66:10.0", "0000:68:00.1")


def test_an_infiniband_port(sys: FakeSysfs) -> None:
    port = by_name(sys)["ibp0:1"]
    assert (port.link_layer, port.rate_mbit, port.lid) == ("InfiniBand", 200_000, 0x1C)
    assert port.gid is not None
    assert (port.gid.index, port.gid.kind, port.gid.interface) == (0, "IB", "")
    assert port.path_mtu_bytes == 0  # Only the driver knows.
    assert (port.numa_node, port.trouble) == (-1, "")


def test_a_software_device_has_no_place_on_pcie(sys: FakeSysfs) -> None:
    port = by_name(sys)["rxe0:1"]
    assert (port.pci_path, port.numa_node, port.rate_mbit) == ((), -1, 2500)
    assert port.gid is not None
    assert str(port.gid.ip) == "192.168.0.2"


@pytest.mark.parametrize(
    ("mtu", "path_mtu"), [(9000, 4096), (4192, 4096), (4191, 2048), (1500, 1024), (300, 0)]
)
def test_the_path_mtu_is_what_fits_into_the_interface(
    tmp_path: Path, mtu: int, path_mtu: int
) -> None:
    fake = FakeSysfs(tmp_path)
    fake.interface("eth0", mtu)
    fake.device("rxe0", [FakePort(gids=roce_gids("eth0", LINK_LOCAL, "10.0.0.5"))])
    assert by_name(fake)["rxe0:1"].path_mtu_bytes == path_mtu


def test_gids_are_tried_in_the_order_of_their_merit(tmp_path: Path) -> None:
    fake = FakeSysfs(tmp_path)
    fake.interface("eth0")
    table = {
        0: (LINK_LOCAL, "IB/RoCE v1", "eth0"),
        1: (LINK_LOCAL, "RoCE v2", "eth0"),
        2: (v4("10.9.9.9"), "RoCE v2", "elsewhere"),  # Its interface is in another namespace.
        3: ("fd00:0000:0000:0000:0000:0000:0000:0001", "RoCE v2", "eth0"),
        5: (v4("10.0.0.5"), "IB/RoCE v1", "eth0"),
        6: (v4("10.0.0.5"), "RoCE v2", "eth0"),
    }
    fake.device("mlx5_0", [FakePort(gids=table)])
    port = by_name(fake)["mlx5_0:1"]
    assert [gid.index for gid in port.gids] == [6, 3, 1, 2, 5, 0]
    assert port.gids[-1].kind == "RoCE v1"


def test_holes_in_a_table_are_passed_and_its_long_empty_end_is_not_read(tmp_path: Path) -> None:
    fake = FakeSysfs(tmp_path)
    gids = {60: (v4("10.0.0.60"), "RoCE v2", "eth0"), 124: (v4("10.0.0.124"), "RoCE v2", "eth0")}
    gids[189] = (v4("10.0.0.189"), "RoCE v2", "eth0")
    fake.device("x0", [FakePort(gids=gids, places=256)])
    [port] = rdma_ports(tmp_path)
    assert [gid.index for gid in port.gids] == [60, 124]


@pytest.mark.parametrize(
    ("port", "uverbs", "trouble"),
    [
        (FakePort("1: DOWN"), 0, "port x0:1 is DOWN: bring its network interface up"),
        (FakePort("2: INIT", "InfiniBand"), 0, "port x0:1 is INIT: .*subnet manager"),
        (FakePort(), 0, "port x0:1 has no GID: give its network interface an IP address"),
        (
            FakePort(gids={0: (LINK_LOCAL, "RoCE v2", "eth0")}),
            -1,
            "device x0 has no file.*ib_uverbs",
        ),
    ],
)
def test_what_a_port_lacks_is_said_with_its_remedy(
    tmp_path: Path, port: FakePort, uverbs: int, trouble: str
) -> None:
    fake = FakeSysfs(tmp_path)
    fake.device("x0", [port], uverbs=uverbs)
    [found] = rdma_ports(tmp_path)
    assert re.match(trouble, found.trouble)


@pytest.mark.parametrize("node_type", ["4: RNIC", "7: unspecified", ""])
def test_a_device_of_another_kind_becomes_no_rail(tmp_path: Path, node_type: str) -> None:
    fake = FakeSysfs(tmp_path)
    gids = {0: (LINK_LOCAL, "IB/RoCE v1", "eth0")}
    fake.device("efa_0", [FakePort(gids=gids)], uverbs=0, node_type=node_type)
    [port] = rdma_ports(tmp_path)
    assert port.trouble.startswith("device efa_0 is ")
    assert "only InfiniBand and RoCE" in port.trouble


# ---- what TENT_RDMA_DEVICES makes of it ----------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (None, ["ibp0:1", "ibp0:2", "mlx5_2:1", "mlx5_10:1", "rxe0:1"]),
        (("mlx5_10", "mlx5_2"), ["mlx5_2:1", "mlx5_10:1"]),
        (("mlx5_*",), ["mlx5_2:1", "mlx5_10:1"]),
        (("mlx5_?",), ["mlx5_2:1"]),
        (("ibp0:2",), ["ibp0:2"]),
        (("^rxe*",), ["ibp0:1", "ibp0:2", "mlx5_2:1", "mlx5_10:1"]),
        (("ibp0", "mlx5_*", "^ibp0:2", "^mlx5_10"), ["ibp0:1", "mlx5_2:1"]),
    ],
)
def test_entries_include_and_exclude(
    sys: FakeSysfs, entries: tuple[str, ...] | None, expected: list[str]
) -> None:
    assert names(chosen_ports(entries, rdma_ports(sys.root))) == expected


def test_a_gid_that_is_named_comes_first(sys: FakeSysfs) -> None:
    [port] = chosen_ports(("mlx5_2:1@0",), rdma_ports(sys.root))
    assert [gid.index for gid in port.gids] == [0, 3, 1, 2]
    [port] = chosen_ports(("mlx5_2@1", "mlx5_2"), rdma_ports(sys.root))
    assert port.gid is not None
    assert port.gid.index == 1


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (("mlx5_2", "mlx4_0"), r"mlx4_0, which matches no port.*ibp0:1 \(ACTIVE\), ibp0:2 \(DOWN"),
        (("mlx5_2:2",), "mlx5_2:2, which matches no port"),
        (("^mlx4_0",), r"\^mlx4_0, which matches no port"),
        (("mlx5_2", "^mlx5_*"), r"mlx5_2,\^mlx5_\* leaves no port"),
        (
            ("mlx5_2@7",),
            r"GID 7 of mlx5_2:1, which is empty; its GIDs are 3 \(10\.0\.0\.5, RoCE v2",
        ),
        (("ibp0:2@0",), "GID 0 of ibp0:2, which is empty; its GIDs are none"),
        (("mlx5_2@1", "mlx5_2:1@3"), "several GIDs for mlx5_2:1"),
        (("mlx5_2:one",), "an entry is DEVICE"),
        (("^mlx5_2@3",), "an entry is DEVICE"),
    ],
)
def test_an_entry_that_cannot_be_followed_is_an_error(
    sys: FakeSysfs, entries: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        chosen_ports(entries, rdma_ports(sys.root))
    assert "TENT_RDMA_DEVICES" in str(caught.value)


def test_a_list_on_a_host_without_devices_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="it has no RDMA device"):
        chosen_ports(("mlx5_0",), rdma_ports(tmp_path))
    assert chosen_ports(None, rdma_ports(tmp_path)) == []
