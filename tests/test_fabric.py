"""Tests of fabric.py: which pairs are tried, and what the answers make of a port. The verbs are
played by a recorder; tests/rdma has them for real."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from tests.fake_sysfs import FakePort, FakeSysfs, roce_gids
from torch_tent import fabric
from torch_tent.fabric import Reach, same_kind
from torch_tent.rdma_ports import RdmaPort, rdma_ports
from torch_tent.settings import Settings

LINK_LOCAL = "fe80:0000:0000:0000:ba59:9fff:fe12:3456"


class Recorder:
    """A fabric in which the named pairs have trouble, and all others do not."""

    def __init__(self, **troubles: Reach) -> None:
        self.troubles = troubles
        self.tried: list[str] = []
        self.closed = False

    def reach(self, source: RdmaPort, target: RdmaPort) -> Reach:
        pair = f"{source.device}_{target.device}"
        self.tried.append(pair)
        well = Reach(source.name, target.name, write_s=12e-6, path_mtu_bytes=1024)
        return self.troubles.get(pair, well)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """Three RoCE ports, of which the last is down."""
    fake = FakeSysfs(tmp_path)
    for number, state in enumerate(("4: ACTIVE", "4: ACTIVE", "1: DOWN")):
        fake.interface(f"ens{number}")
        gids = roce_gids(f"ens{number}", LINK_LOCAL, f"10.0.{number}.5")
        fake.device(f"x{number}", [FakePort(state, gids=gids)], uverbs=number)
    monkeypatch.setattr(fabric, "SYS", tmp_path)
    return fake


def silent(source: str, target: str) -> Reach:
    return Reach(f"{source}:1", f"{target}:1", "no answer", "look at the cable")


def judged(recorder: Recorder, *devices: str) -> dict[str, tuple[str, str, str]]:
    found = fabric.fabric(Settings(rdma_devices=devices or None), recorder)
    return {topic: (state, text, advice) for topic, state, text, advice, _ in found}


def test_every_pair_of_usable_ports_is_tried_once_in_both_directions(host: FakeSysfs) -> None:
    recorder = Recorder()
    found = judged(recorder)
    assert recorder.tried == ["x0_x0", "x0_x1", "x1_x0", "x1_x1"]
    assert recorder.closed
    state, text, _ = found["RDMA fabric from x0:1"]
    assert state == "ok"
    assert text == "reaches x0:1 (12 µs, path MTU 1024), x1:1 (12 µs, path MTU 1024)"
    assert found["RDMA fabric"][0] == "ok"
    assert "our fault" in found["RDMA fabric"][1]


def test_another_hosts_ports_of_which_none_is_reached_are_bad() -> None:
    lost = [Reach("x0:1", f"{name} on there", "no answer", "look") for name in ("x0:1", "x1:1")]
    found = {topic: state for topic, state, *_ in fabric.judged(lost)}
    assert found == {"RDMA fabric from x0:1": "note", "RDMA fabric": "bad"}
    one = [*lost, Reach("x1:1", "x1:1 on there")]  # Another network, which works.
    assert fabric.judged(one)[-1][1] == "ok"


def test_a_port_that_reaches_only_itself_is_noted_with_what_to_look_at(host: FakeSysfs) -> None:
    found = judged(Recorder(x0_x1=silent("x0", "x1")))
    state, text, advice = found["RDMA fabric from x0:1"]
    assert state == "note"
    assert text.endswith("; does not reach x1:1 (no answer)")
    assert advice == "look at the cable"
    assert found["RDMA fabric from x1:1"][0] == "ok"
    assert found["RDMA fabric"][0] == "ok"


def test_a_port_that_reaches_nothing_is_bad_and_not_our_fault(host: FakeSysfs) -> None:
    recorder = Recorder(x0_x0=silent("x0", "x0"), x0_x1=silent("x0", "x1"))
    found = judged(recorder)
    assert found["RDMA fabric from x0:1"][0] == "bad"
    state, text, _ = found["RDMA fabric"]
    assert state == "bad"
    assert "verbs fail on x0:1 without any part of torch_tent" in text


def test_wrong_bytes_are_bad_even_if_all_else_works(host: FakeSysfs) -> None:
    broken = Reach("x0:1", "x1:1", "the bytes written are not those sent", corrupt=True)
    assert judged(Recorder(x0_x1=broken))["RDMA fabric from x0:1"][0] == "bad"


def test_the_choice_of_devices_holds_here_too(host: FakeSysfs) -> None:
    recorder = Recorder()
    judged(recorder, "^x0")
    assert recorder.tried == ["x1_x1"]
    assert judged(recorder, "mlx5_0")["RDMA fabric"][0] == "bad"


def test_nothing_usable_is_bad_and_says_why(host: FakeSysfs) -> None:
    state, text, _ = judged(Recorder(), "x2")["RDMA fabric"]
    assert state == "bad"
    assert "port x2:1 is DOWN" in text


def test_without_pyverbs_the_way_to_get_it_is_said(
    host: FakeSysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "pyverbs":
            raise ImportError("No module named 'pyverbs'")
        return really(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    [(_, state, text, advice, _)] = fabric.fabric(Settings())
    assert state == "bad"
    assert "No module named 'pyverbs'" in text
    assert "python3-pyverbs" in advice


def test_gids_meet_only_their_own_kind_and_ip_version(tmp_path: Path) -> None:
    fake = FakeSysfs(tmp_path)
    fake.interface("ens0")
    first = {0: (LINK_LOCAL, "IB/RoCE v1", "ens0")}
    second = {0: (LINK_LOCAL, "RoCE v2", "ens0")}
    infiniband = FakePort(link_layer="InfiniBand", gids={0: (LINK_LOCAL, "IB/RoCE v1", "")})
    fake.device("a", [FakePort(gids=roce_gids("ens0", LINK_LOCAL, "10.0.0.1"))])
    fake.device("b", [FakePort(gids=first)])
    fake.device("c", [FakePort(gids=second)])
    fake.device("d", [infiniband])
    a, b, c, d = rdma_ports(tmp_path)
    pair = same_kind(a, a)
    assert pair is not None
    assert str(pair[0].ip) == "10.0.0.1"
    pair = same_kind(a, c)
    assert pair is not None
    assert [gid.kind for gid in pair] == ["RoCE v2", "RoCE v2"]
    assert all(gid.ip.version == 6 for gid in pair)
    assert same_kind(b, c) is None
    assert same_kind(a, d) is None
    assert same_kind(d, d) is not None
