"""Tests of rdma_health.py: whatever a host lacks for RDMA rails is said once, with what to do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
import torch

import torch_tent as tent
from tests.fake_sysfs import FakePort, FakeSysfs, roce_gids
from torch_tent import hardware, rdma_health, topology
from torch_tent.hardware import Found
from torch_tent.settings import Settings

MIB = 1 << 20
LINK_LOCAL = "fe80:0000:0000:0000:ba59:9fff:fe12:3456"


class Host:
    """A fake host on which nothing is missing, until a test takes it away."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.sys = FakeSysfs(folder / "sys")
        self.dev = folder / "dev"
        self.dev.mkdir()
        self._patch = patch
        patch.setattr(rdma_health, "DEVICES", self.dev)
        patch.setattr(hardware, "loads", lambda library: True)
        self.limit(-1, "0000000000000000", folder / "status")

    def limit(self, memlock_bytes: int, capabilities: str, status: Path) -> None:
        memory = dataclasses.replace(topology.memory(), memlock_bytes=memlock_bytes)
        self._patch.setattr(topology, "memory", lambda: memory)
        status.write_text(f"Name:\tpython\nCapEff:\t{capabilities}\n")
        self._patch.setattr(rdma_health, "STATUS", status)

    def roce(self, number: int, mtu: int = 9000, **port: str) -> None:
        """Device mlx5_N with one port on interface ensN and its file uverbsN."""
        self.sys.interface(f"ens{number}", mtu)
        gids = roce_gids(f"ens{number}", LINK_LOCAL, f"10.0.{number}.5")
        self.sys.device(f"mlx5_{number}", [FakePort(gids=gids, **port)], uverbs=number)
        (self.dev / f"uverbs{number}").touch()

    def findings(self, *devices: str) -> dict[str, Found]:
        found = rdma_health.rdma(Settings(rdma_devices=devices or None), self.sys.root)
        json.dumps([facts for *_, facts in found])
        topics = {topic: (topic, *rest) for topic, *rest in found}
        assert len(topics) == len(found)
        return topics


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_healthy_host_needs_no_advice(host: Host) -> None:
    host.roce(0)
    host.roce(1)
    found = host.findings()
    assert set(found) == {"RDMA", "RDMA port mlx5_0:1", "RDMA port mlx5_1:1"}
    assert all(advice == "" for _, _, _, advice, _ in found.values())
    _, state, text, _, facts = found["RDMA port mlx5_1:1"]
    assert state == "ok"
    assert text == "ACTIVE, Ethernet, 100 Gbit/s, path MTU 4096, GID 3 (10.0.1.5, RoCE v2)"
    assert facts["gids"][0]["interface"] == "ens1"
    assert "2 of 2 port(s) chosen" in found["RDMA"][2]


def test_whether_rails_are_made_is_said_beside_the_ports(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.roce(0)
    off = rdma_health.rdma(Settings(transports=("tcp",)), host.sys.root)[0]
    assert off[2].endswith("; off: rdma is not in TENT_TRANSPORTS")
    monkeypatch.setattr(rdma_health, "_unused", lambda settings: "")
    assert host.findings()["RDMA"][1] == "ok"


def test_a_host_without_devices_is_told_how_to_get_one(host: Host) -> None:
    [(_, state, text, advice, _)] = host.findings().values()
    assert (state, "no device" in text, "rdma_rxe" in advice) == ("note", True, True)


def test_a_list_that_matches_nothing_is_bad(host: Host) -> None:
    host.roce(0)
    [(_, state, text, advice, _)] = host.findings("mlx4_0").values()
    assert state == "bad"
    assert "names mlx4_0, which matches no port of this host; its ports are mlx5_0:1" in text
    assert "TENT_RDMA_DEVICES" in advice


def test_only_the_chosen_ports_are_judged(host: Host) -> None:
    host.roce(0)
    host.roce(1, state="1: DOWN")
    assert "RDMA port mlx5_1:1" not in host.findings("^mlx5_1")
    assert host.findings()["RDMA port mlx5_1:1"][1] == "note"


def test_missing_files_and_refused_ones_are_told_apart(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.roce(0)
    host.roce(1)
    (host.dev / "uverbs0").unlink()
    advice = host.findings()["RDMA"][3]
    assert f"there is no {host.dev / 'uverbs0'}: give the container /dev/infiniband" in advice
    assert "uverbs1" not in advice
    monkeypatch.setattr(rdma_health, "_may_use", lambda path: False)
    assert f"no permission on {host.dev / 'uverbs1'}: join the group" in host.findings()["RDMA"][3]


def test_a_small_memlock_is_said_unless_the_process_may_pin_anyway(
    host: Host, tmp_path: Path
) -> None:
    host.roce(0)
    host.limit(64 << 10, "0000000000000000", tmp_path / "status")
    advice = host.findings()["RDMA"][3]
    assert "only 64 KiB may be pinned" in advice
    assert "ulimit -l unlimited" in advice
    host.limit(64 << 10, "0000000000004000", tmp_path / "status")
    assert host.findings()["RDMA"][3] == ""


def test_a_missing_library_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.roce(0)
    monkeypatch.setattr(hardware, "loads", lambda library: False)
    assert "apt-get install libibverbs1" in host.findings()["RDMA"][3]


def test_a_port_that_is_down_says_so_and_how_to_bring_it_up(host: Host) -> None:
    host.roce(0, state="1: DOWN")
    _, state, text, advice, _ = host.findings()["RDMA port mlx5_0:1"]
    assert state == "note"
    assert text.endswith("; port mlx5_0:1 is DOWN")
    assert advice.startswith("bring its network interface up")


def test_a_port_without_gid_says_how_to_get_one(host: Host) -> None:
    host.sys.device("mlx5_0", [FakePort()], uverbs=0)
    (host.dev / "uverbs0").touch()
    _, _, text, advice, _ = host.findings()["RDMA port mlx5_0:1"]
    assert text.endswith("; port mlx5_0:1 has no GID")
    assert advice.startswith("give its network interface an IP address")


def test_path_mtus_that_differ_or_are_small_are_said_once(host: Host) -> None:
    host.roce(0, mtu=9000)
    assert "RDMA path MTU" not in host.findings()
    host.roce(1, mtu=1500)
    _, state, text, advice, _ = host.findings()["RDMA path MTU"]
    assert state == "note"
    assert "ports differ (mlx5_0:1 4096, mlx5_1:1 1024)" in text
    assert "on ens1," in advice
    assert "small packets (mlx5_1:1 1024)" in host.findings("mlx5_1")["RDMA path MTU"][2]


def test_required_rdma_that_cannot_be_is_an_error_with_the_reason() -> None:
    """Engines of this very host, which has no RDMA ports."""
    x = torch.zeros(MIB, dtype=torch.uint8)
    with contextlib.ExitStack() as stack:
        near, far = tent.Engine(tent.Settings()), tent.Engine(tent.Settings())
        stack.callback(near.close)
        stack.callback(far.close)
        remote = near.open(far.register(torch.zeros_like(x), access="write").ticket())
        with pytest.raises(tent.TransferError, match=r"cannot be met.*no RDMA port"):
            near.write(x, remote, require="rdma").wait(10)
        with pytest.raises(tent.SettingsError, match="fake0"):
            tent.Engine(tent.Settings(rdma_devices=("fake0",)))
