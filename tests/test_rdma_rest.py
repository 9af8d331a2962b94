"""RDMA links that carry nothing are closed without a fault and made again when they are wanted; a
device that has as many links as it may gives up the one that is idle for longest, or says why it
cannot."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.fake_rdma import Fabric
from tests.pairs import until
from tests.test_rdma_rails import MIB, RAILS, Two, noise

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("rdma_host")]

IDLE_S = 0.3
NEVER_S = 3600.0


def rdma_rails(engine: tent.Engine) -> list[dict[str, Any]]:
    return [rail for rail in engine.native.stats()["rails"] if rail["kind"] == "rdma"]


def up(engine: tent.Engine) -> int:
    return sum(rail["up"] for rail in rdma_rails(engine))


def unharmed(engine: tent.Engine) -> bool:
    """Nothing was ever suspected, fenced, sent again or lost."""
    totals = engine.native.stats()["transfers"]
    counts = [totals[name] for name in ("fences", "suspects", "retries")]
    return not any(counts) and not any(
        rail["links_lost"] or rail["fences"] for rail in rdma_rails(engine)
    )


class One(Two):
    """Engines with one rail, which cannot be in doubt: there is no other to compare it with."""

    def __init__(self, near_s: float, far_s: float) -> None:
        self.near = self.engine(("fake0",), (), {"rdma_idle_s": near_s})
        self.far = self.engine(("fake1",), (), {"rdma_idle_s": far_s})


def test_links_that_carry_nothing_are_closed_at_both_ends_and_come_back(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "torch_tent")
    with One(IDLE_S, IDLE_S) as two:
        memory, segment, remote = two.landing(MIB)
        for turn in range(3):
            x = noise(MIB, turn)
            two.near.write(x, remote).wait(20)
            assert torch.equal(memory, x)
            until(lambda: up(two.near) == up(two.far) == 0 and fabric.pairs == 0)
        assert unharmed(two.near)
        assert unharmed(two.far)
        assert all(rail["links_made"] >= 1 for rail in rdma_rails(two.near))
        assert "link down" not in caplog.text
        assert "lost" not in caplog.text
        back = torch.zeros(MIB, dtype=torch.uint8)
        two.near.read(remote, back).wait(20)  # the other end has to send, and may have to call
        assert torch.equal(back, x)
        segment.close()


def test_a_peer_whose_time_is_longer_hears_that_the_link_was_idle(fabric: Fabric) -> None:
    with One(IDLE_S, NEVER_S) as two:
        _, segment, remote = two.landing(MIB)
        two.near.write(noise(MIB), remote).wait(20)
        until(lambda: up(two.near) == up(two.far) == 0)
        assert unharmed(two.far)
        [rail] = rdma_rails(two.far)
        assert rail["links_made"] == 1  # it did not call at once
        segment.close()


def test_they_come_back_beside_a_rail_that_never_rested(fabric: Fabric) -> None:
    for device in range(4):
        fabric.rate(device, 500e6, 20e-6)
    with Two("tcp", rdma_idle_s=IDLE_S) as two:
        memory, segment, remote = two.landing(8 * MIB)
        x = noise(8 * MIB)
        two.near.write(x, remote, require="rdma").wait(20)
        until(lambda: up(two.near) == up(two.far) == 0)
        made = sum(rail["links_made"] for rail in rdma_rails(two.near))

        def used_again() -> bool:
            memory.zero_()
            transfer = two.near.write(x, remote)
            transfer.wait(20)
            assert torch.equal(memory, x)
            return bool(set(transfer.report()["rails"]) & set(RAILS))

        until(used_again)
        assert sum(rail["links_made"] for rail in rdma_rails(two.near)) > made
        segment.close()


def test_a_link_that_is_waited_for_stays(fabric: Fabric) -> None:
    """The near end never finds it idle while it waits for a message; the far end hears pings."""
    with One(IDLE_S, NEVER_S) as two:
        _, segment, remote = two.landing(MIB)
        two.near.write(noise(MIB), remote).wait(20)
        peer = two.near.meet(two.far.card)
        waiting = two.near.native.verbs().recv(torch.empty(8, dtype=torch.uint8), peer, 1, 1)
        assert waiting is not None
        made = [rail["links_made"] for rail in rdma_rails(two.near)]
        time.sleep(3 * IDLE_S)
        assert up(two.near) == up(two.far) == 1
        assert [rail["links_made"] for rail in rdma_rails(two.near)] == made
        waiting.cancel()
        until(lambda: up(two.near) == up(two.far) == 0)
        segment.close()


def test_transfers_at_the_moment_of_closing_arrive(fabric: Fabric) -> None:
    """Each is begun just when one end, or both, find that the link carried nothing for long."""
    with Two(rdma_idle_s=0.1) as two:
        memory, segment, remote = two.landing(100_000)
        for turn in range(40):
            x = noise(100_000, turn)
            two.near.write(x, remote).wait(20)
            assert torch.equal(memory, x)
            time.sleep(0.09 + 0.0005 * turn)
        segment.close()


class Hub:
    """An engine on fake0, and others on fake1 that talk to it."""

    def __init__(self, others: int, links_max: int, *transports: str) -> None:
        self.engine = Two.engine(("fake0",), transports, {"rdma_links_max": links_max})
        self.others = [Two.engine(("fake1",), transports, {}) for _ in range(others)]
        self.memory = torch.zeros(MIB, dtype=torch.uint8)
        self.segment = self.engine.register(self.memory, access="read-write")
        ticket = self.segment.ticket()
        self.remotes = [other.open(ticket) for other in self.others]

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.segment.close()
        for engine in (*self.others, self.engine):
            engine.close()

    def write(self, other: int, **options: Any) -> tent.Transfer:
        """One of them writes, and it is looked whether all came."""
        x = noise(MIB, other)
        transfer = self.others[other].write(x, self.remotes[other], **options)
        transfer.wait(20)
        assert torch.equal(self.memory, x)
        return transfer


def test_a_full_device_gives_up_the_link_that_is_idle_for_longest(fabric: Fabric) -> None:
    with Hub(3, 2) as hub:
        hub.write(0)
        hub.write(1)
        hub.write(0)
        assert up(hub.engine) == 2
        hub.write(2)  # waits until one of them has been idle for a second
        until(lambda: up(hub.engine) == 2)
        assert [up(other) for other in hub.others] == [1, 0, 1]
        hub.write(1)
        until(lambda: [up(other) for other in hub.others] == [0, 1, 1])
        assert all(unharmed(engine) for engine in (hub.engine, *hub.others))


def test_where_none_is_idle_the_link_is_refused_with_a_reason_and_another_rail_carries(
    fabric: Fabric,
) -> None:
    with Hub(2, 1, "tcp") as hub:
        hub.write(0, require="rdma")
        before = torch.empty(8, dtype=torch.uint8)
        ours = hub.engine.native.verbs()  # its waiting keeps the one link in use
        peer = hub.engine.meet(hub.others[0].card)
        assert ours.recv(before, peer, 1, 1) is not None
        assert set(hub.write(1).report()["rails"]) == {"tcp 127.0.0.1>127.0.0.1"}
        control = hub.others[1]._control
        until(lambda: "TENT_RDMA_LINKS_MAX" in str(control.stats()["peers"]))
        with pytest.raises(tent.TransferTimeout):
            hub.write(1, require="rdma", timeout=0.2)
        assert up(hub.others[0]) == 1
