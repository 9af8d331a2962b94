"""RDMA rails through the API, over fake devices: found, joined, required, lost and used again."""

from __future__ import annotations

import errno
import time
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.fake_rdma import Fabric, hold_joins
from tests.pairs import noise, until

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("rdma_host")]

MIB = 1 << 20
RAILS = ["rdma fake0/1>fake1/1", "rdma fake2/1>fake3/1"]


class Two:
    """Engines with two RDMA rails between them, and whatever else is asked for."""

    def __init__(self, *transports: str, **settings: Any) -> None:
        self.near = self.engine(("fake0", "fake2"), transports, settings)
        self.far = self.engine(("fake1", "fake3"), transports, settings)

    @staticmethod
    def engine(
        devices: tuple[str, ...], transports: tuple[str, ...], settings: dict[str, Any]
    ) -> tent.Engine:
        kinds = ("rdma", *transports)
        return tent.Engine(tent.Settings(rdma_devices=devices, transports=kinds, **settings))

    def __enter__(self) -> Two:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()

    def landing(self, nbytes: int) -> tuple[torch.Tensor, tent.Segment, tent.RemoteSegment]:
        memory = torch.zeros(nbytes, dtype=torch.uint8)
        segment = self.far.register(memory, access="read-write")
        return memory, segment, self.near.open(segment.ticket())


@pytest.mark.parametrize("nbytes", [1, 8, 1024, 5000, 100_000, 8 * MIB + 3])
def test_writes_and_reads_go_over_rdma_where_it_is_required(fabric: Fabric, nbytes: int) -> None:
    with Two("shm", "cma", "tcp") as two:
        memory, segment, remote = two.landing(nbytes)
        x, back = noise(nbytes), torch.zeros(nbytes, dtype=torch.uint8)
        written = two.near.write(x, remote, require="rdma")
        written.wait(20)
        assert torch.equal(memory, x)
        assert set(written.report()["rails"]) <= set(RAILS)
        fetched = two.near.read(remote, back, require="rdma")
        fetched.wait(20)
        assert torch.equal(back, x)
        assert set(fetched.report()["rails"]) <= set(RAILS)
        segment.close()


def test_both_rails_carry_and_are_named(fabric: Fabric) -> None:
    for device in range(4):
        fabric.rate(device, 500e6, 20e-6)
    with Two() as two:
        memory, segment, remote = two.landing(16 * MIB)
        x = noise(16 * MIB)
        two.near.write(x, remote).wait(20)
        until(lambda: len(links(two)) == 2)

        def both_carry() -> bool:  # one may just be in doubt where the machine is busy
            transfer = two.near.write(x, remote)
            transfer.wait(20)
            assert torch.equal(memory, x)
            shares = transfer.report()["rails"]
            return set(shares) == set(RAILS) and min(shares.values()) > 4 * MIB

        until(both_carry)
        segment.close()


def links(two: Two) -> list[dict[str, object]]:
    return [rail for rail in two.near.native.stats()["rails"] if rail["up"]]


def test_a_port_that_goes_down_is_left_at_once_and_used_again(fabric: Fabric) -> None:
    for device in range(4):
        fabric.rate(device, 200e6, 20e-6)
    with Two() as two:
        memory, segment, remote = two.landing(32 * MIB)
        x = noise(32 * MIB)
        two.near.write(x, remote).wait(20)
        until(lambda: len(links(two)) == 2)
        memory.zero_()
        transfer = two.near.write(x, remote)
        until(lambda: memory[:: 64 << 10].count_nonzero() > 50)
        fabric.port(0, False)
        transfer.wait(20)
        assert torch.equal(memory, x)
        until(lambda: len(links(two)) == 1)
        fabric.port(0, True)
        healed = time.monotonic()
        until(lambda: len(links(two)) == 2)
        assert time.monotonic() - healed < 3.0
        segment.close()


@pytest.mark.parametrize("device", [0, 1], ids=["our end", "their end"])
def test_a_rail_whose_address_is_asked_for_holds_up_no_other(fabric: Fabric, device: int) -> None:
    hold_joins(fabric, device, True)
    with Two() as two:
        memory, segment, remote = two.landing(MIB)
        two.near.write(noise(MIB), remote).wait(20)
        assert torch.equal(memory, noise(MIB))
        assert [rail["rail"] for rail in links(two)] == RAILS[1:]
        hold_joins(fabric, device, False)
        until(lambda: len(links(two)) == 2)
        segment.close()


def test_without_any_rdma_rail_left_a_transfer_goes_on_over_tcp(fabric: Fabric) -> None:
    for device in range(4):
        fabric.rate(device, 100e6, 20e-6)
    with Two("tcp") as two:
        memory, segment, remote = two.landing(16 * MIB)
        x = noise(16 * MIB)
        two.near.write(x, remote, require="rdma").wait(20)
        memory.zero_()
        transfer = two.near.write(x, remote)
        until(lambda: memory[:: 64 << 10].count_nonzero() > 20)
        for device in range(4):
            fabric.port(device, False)
        transfer.wait(20)
        assert torch.equal(memory, x)
        with pytest.raises(tent.TransferTimeout):
            two.near.write(x, remote, require="rdma", timeout=0.3).wait(20)
        for device in range(4):
            fabric.port(device, True)
        two.near.write(x, remote, require="rdma").wait(20)
        segment.close()


def test_memory_that_cannot_be_registered_goes_another_way(fabric: Fabric) -> None:
    for device in range(4):
        fabric.refuse(device, errno.ENOMEM, above=256 << 10)
    with Two("tcp") as two:
        memory, segment, remote = two.landing(4 * MIB)
        x = noise(4 * MIB)
        transfer = two.near.write(x, remote, require="rdma")
        transfer.wait(20)
        assert set(transfer.report()["rails"]) <= set(RAILS)
        assert torch.equal(memory, x)
        memory.zero_()
        until(lambda: any(link["kind"] == "tcp" for link in wanted(two, remote, x)))
        transfer = two.near.write(x, remote)
        transfer.wait(20)
        assert not set(transfer.report()["rails"]) & set(RAILS)
        assert torch.equal(memory, x)
        segment.close()


def test_refused_registrations_are_said_once_in_the_log(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    for device in range(4):
        fabric.refuse(device, errno.ENOMEM, above=256 << 10)
    with Two() as two:
        memory, segment, remote = two.landing(4 * MIB)
        for _ in range(2):
            two.near.write(noise(4 * MIB), remote, require="rdma").wait(20)
        until(lambda: "ulimit -l" in caplog.text)
        said = [r for r in caplog.records if "cannot be registered" in r.getMessage()]
        assert 1 <= len(said) <= 2  # each engine once
        assert memory.any()
        segment.close()


@pytest.mark.parametrize("local", ["shm", "cma"])
def test_rdma_memory_of_the_host_and_tcp_carry_one_transfer_together(
    fabric: Fabric, local: str
) -> None:
    """They are one pool: each slice goes to the link that ends it soonest."""
    for device in range(4):
        fabric.rate(device, 1e9, 20e-6)
    with Two(local, "tcp") as two:
        memory, segment, remote = two.landing(32 * MIB)
        x = noise(32 * MIB)
        for kind in ("rdma", "tcp"):  # within a host, they are dialed when they are asked for
            two.near.write(x, remote, require=kind).wait(20)
        kinds = {rail["rail"]: rail["kind"] for rail in links(two)}
        assert {"rdma", "tcp", local} <= set(kinds.values())
        least = dict.fromkeys(("rdma", "tcp", local), 0)

        def all_carry() -> bool:  # what each can do is learned on the way
            memory.zero_()
            transfer = two.near.write(x, remote)
            transfer.wait(20)
            assert torch.equal(memory, x)
            for kind in least:
                shares = transfer.report()["rails"]
                least[kind] = sum(n for rail, n in shares.items() if kinds.get(rail) == kind)
            return min(least.values()) >= MIB

        until(all_carry, 60)
        segment.close()


def wanted(two: Two, remote: tent.RemoteSegment, x: torch.Tensor) -> list[dict[str, object]]:
    """The links, after a transfer that may use any of them."""
    two.near.write(x, remote, require="tcp").wait(20)
    return links(two)


def test_nothing_stays_registered_or_open(fabric: Fabric) -> None:
    until(lambda: fabric.pairs == 0)  # of engines before
    before = fabric.regions, fabric.pairs
    with Two() as two:
        _, segment, remote = two.landing(MIB)
        two.near.write(noise(MIB), remote).wait(20)
        assert fabric.pairs > before[1]
        assert fabric.regions > before[0]
        segment.close()
    until(lambda: (fabric.regions, fabric.pairs) == before)  # a thread of its own ends the pairs


def test_silent_loss_on_one_rail_is_not_seen_by_the_caller(fabric: Fabric) -> None:
    for device in range(4):
        fabric.rate(device, 200e6, 20e-6)
    fabric.retry(60.0)  # the devices would never tell
    with Two() as two:
        memory, segment, remote = two.landing(32 * MIB)
        x = noise(32 * MIB)
        two.near.write(x, remote).wait(20)
        until(lambda: len(links(two)) == 2)
        memory.zero_()
        transfer = two.near.write(x, remote)
        until(lambda: memory[:: 64 << 10].count_nonzero() > 50)
        fabric.cut(0)
        transfer.wait(30)
        assert torch.equal(memory, x)
        assert transfer.report()["fences"] >= 1
        segment.close()


@pytest.mark.parametrize("end", ["cancel", "owner closes"])
def test_no_stray_byte_lands_after_the_end(fabric: Fabric, end: str) -> None:
    """Devices that write on until they say that they stopped; memory that is reused at once."""
    for device in range(4):
        fabric.rate(device, 100e6, 20e-6)
        fabric.lingers(device)
    with Two() as two:
        for _ in range(3):
            memory, segment, remote = two.landing(16 * MIB)
            transfer = two.near.write(noise(16 * MIB), remote)
            until(lambda seen=memory: seen[:: 64 << 10].any())
            if end == "cancel":
                transfer.cancel()
                with pytest.raises(tent.TransferCancelled):
                    transfer.wait(20)
            else:
                segment.close()
            memory.fill_(0xA5)
            if end != "cancel":
                with pytest.raises(tent.AccessError):
                    transfer.wait(20)
            _, other, after = two.landing(MIB)
            two.near.write(noise(MIB), after).wait(20)  # comes behind whatever was under way
            assert bool((memory == 0xA5).all())
            segment.close()
            other.close()
