"""What a host may lack for RDMA: no device, no permission, no pinned memory, no GID, a port that is
down, packets that are too large. Each is said once, with what to do, and transfers take another
path unless that is forbidden."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.fake_rdma import DEVICES, Fabric, lose_above, port, refuse_opening, set_mtu
from tests.pairs import noise
from tests.test_rdma_rails import RAILS, Two
from torch_tent import rendezvous
from torch_tent.rdma_ports import RdmaPort

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("rdma_host")]
MIB = 1 << 20


def on_all(change: Callable[[int], None]) -> None:
    for device in range(DEVICES):
        change(device)


# What is wrong with every device, and the words that tell it, with their remedy.
REFUSALS: dict[str, tuple[Callable[[Fabric, int], None], str]] = {
    "no permission": (
        lambda f, n: refuse_opening(f, n, errno.EACCES),
        "permission for /dev/infiniband",
    ),
    "no memory may be pinned": (lambda f, n: f.refuse(n, errno.ENOMEM), "ulimit -l"),
    "the port is down": (lambda f, n: f.port(n, False), "look at its cable and its interface"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_our_devices_refuse_is_said_once_and_tcp_carries(
    fabric: Fabric, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, words = REFUSALS[what]
    on_all(lambda device: spoil(fabric, device))
    with Two("tcp") as two:
        memory, segment, remote = two.landing(MIB)
        for _ in range(3):
            transfer = two.near.write(noise(MIB), remote)
            transfer.wait(20)
        assert torch.equal(memory, noise(MIB))
        assert not set(transfer.report()["rails"]) & set(RAILS)
        with pytest.raises(tent.TransferTimeout):
            two.near.write(noise(MIB), remote, require="rdma", timeout=0.5).wait(20)
        said = [r.getMessage() for r in caplog.records if "no RDMA rail ends on" in r.getMessage()]
        assert 1 <= len(said) == len(set(said)) <= DEVICES
        assert all(words in text for text in said)
        segment.close()


def ports(**changes: Any) -> list[RdmaPort]:
    return [dataclasses.replace(port(device), **changes) for device in range(DEVICES)]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (ports(gids=()), "has no GID: give its network interface an IP address"),
        (ports(state="DOWN"), "is DOWN: bring its network interface up"),
        (ports(uverbs=""), "ib_uverbs"),
        (ports(node_type="4: RNIC"), "only InfiniBand and RoCE"),
    ],
    ids=["no GID", "down", "no file", "another kind"],
)
def test_ports_that_are_not_ready_are_said_and_tcp_carries(
    fabric: Fabric,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    found: list[RdmaPort],
    words: str,
) -> None:
    monkeypatch.setattr(rendezvous, "rdma_ports", lambda: found)
    on_all(lambda device: fabric.port(device, False))
    with Two("tcp") as two:
        memory, segment, remote = two.landing(MIB)
        transfer = two.near.write(noise(MIB), remote)
        transfer.wait(20)
        assert torch.equal(memory, noise(MIB))
        assert not set(transfer.report()["rails"]) & set(RAILS)
        said = [r.getMessage() for r in caplog.records if words in r.getMessage()]
        assert len([text for text in said if "no RDMA rail ends on" in text]) >= DEVICES
        segment.close()


def test_without_a_device_nothing_is_said_but_where_rdma_is_required(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "rdma_ports", list)
    settings = tent.Settings(transports=("rdma", "tcp"))
    near, far = tent.Engine(settings), tent.Engine(settings)
    try:
        memory = torch.zeros(MIB).byte()
        remote = near.open(far.register(memory, access="write").ticket())
        near.write(noise(MIB), remote).wait(20)
        assert torch.equal(memory, noise(MIB))
        with pytest.raises(tent.TransferError, match=r"no RDMA port that is ready: see `doctor`"):
            near.write(noise(MIB), remote, require="rdma").wait(20)
    finally:
        near.close()
        far.close()


def test_ports_of_different_packets_use_the_smaller_ones(fabric: Fabric) -> None:
    set_mtu(fabric, 1, 3)
    set_mtu(fabric, 2, 4)
    with Two() as two:
        memory, segment, remote = two.landing(8 * MIB)
        transfer = two.near.write(noise(8 * MIB), remote, require="rdma")
        transfer.wait(20)
        assert torch.equal(memory, noise(8 * MIB))
        assert transfer.report()["fences"] == 0
        segment.close()


def test_where_large_packets_get_lost_tcp_carries(fabric: Fabric) -> None:
    """Greetings pass, and reads do not: the rails come up, and are left again and again."""
    on_all(lambda device: lose_above(fabric, device, 2500))
    fabric.retry(60.0)  # The devices would never tell.
    with Two("tcp") as two:
        memory, segment, remote = two.landing(8 * MIB)
        two.near.write(noise(8), remote[:8], require="tcp").wait(20)
        two.near.write(noise(8), remote[:8], require="rdma").wait(20)
        for seed in (1, 2):
            two.near.write(noise(8 * MIB, seed), remote).wait(60)
            assert torch.equal(memory, noise(8 * MIB, seed))
        with pytest.raises(tent.TransferTimeout):
            two.near.write(noise(8 * MIB), remote, require="rdma", timeout=1.0).wait(20)
        memory.fill_(0xA5)
        two.near.write(noise(8), remote[:8]).wait(20)
        assert bool((memory[8:] == 0xA5).all())
        segment.close()


@pytest.mark.parametrize("status", [10, 4], ids=["a stale key", "out of range here"])
def test_a_read_that_is_refused_goes_another_way(fabric: Fabric, status: int) -> None:
    for device in range(DEVICES):
        fabric.rate(device, 200e6, 20e-6)
    with Two() as two:
        memory, segment, remote = two.landing(16 * MIB)
        two.near.write(noise(16 * MIB), remote).wait(20)
        memory.zero_()
        transfer = two.near.write(noise(16 * MIB, 2), remote, require="rdma")
        fabric.fail_next(1, status)
        transfer.wait(20)
        assert torch.equal(memory, noise(16 * MIB, 2))
        assert transfer.report()["fences"] >= 1
        segment.close()
