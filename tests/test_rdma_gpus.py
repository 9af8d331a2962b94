"""GPUDirect RDMA on fake devices and fake GPUs: which pairs are used, which are not and why; bytes
that go without the host's memory, and that end where their transfer ends."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.fake_cuda import INTO, OUT_OF, Fake
from tests.fake_rdma import Fabric, load_peer_memory, misses_gpus
from tests.pairs import until

pytest_plugins = ["tests.rdma_fixtures", "tests.cuda_fixtures"]
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("rdma_host")]

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def fake(fake: Fake) -> Iterator[Fake]:
    fake.c.gpudirect(True, True, True)
    yield fake
    fake.c.gpudirect(True, True, True)


def noise(count: int, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 128, (count,), dtype=torch.uint8, generator=draw)


class Two:
    """Engines with one RDMA rail between them: ours on fake0, the other one on fake1."""

    def __init__(self, *transports: str, **settings: Any) -> None:
        kinds = ("rdma", *transports)
        self.near, self.far = (
            tent.Engine(tent.Settings(rdma_devices=(name,), transports=kinds, **settings))
            for name in ("fake0", "fake1")
        )

    def __enter__(self) -> Two:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()

    def write(self, x: torch.Tensor, y: torch.Tensor, **words: Any) -> Any:
        with self.far.register(y, "read-write") as segment:
            remote: Any = self.near.open(segment.ticket())
            transfer = self.near.write(x, remote, **words)
            transfer.exception(20)
            return transfer

    def pair(self, engine: tent.Engine) -> str:
        """What was found of the engine's RDMA device and its GPU; "" while it works."""
        [gpu] = engine.native.stats()["gpus"]
        [found] = gpu["rdma"].values()
        return str(found)

    def settle(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Moves something until links and trials are over."""
        ends = [end for end, tensor in ((self.near, x), (self.far, y)) if tensor.is_cuda]

        def settled() -> bool:
            self.write(x, y).wait(20)
            return all(self.pair(end) != "being tried" for end in ends)

        until(settled)


def staged(fake: Fake) -> tuple[int, int]:
    """Bytes that were ever copied out of cuda:0 and into cuda:1 through the host's memory."""
    return fake.copied(0, OUT_OF), fake.copied(1, INTO)


@pytest.mark.parametrize("ends", ["gpu gpu", "gpu cpu", "cpu gpu"])
@pytest.mark.parametrize("how", ["dma-buf", "peer memory"])
def test_bytes_go_without_the_hosts_memory(fabric: Fabric, fake: Fake, ends: str, how: str) -> None:
    if how == "peer memory":
        fake.c.gpudirect(False, True, True)
        load_peer_memory(fabric, fake.c.shadow_function())
    near, far = ends.split()
    size = 5 * MIB + 13
    with Two() as two:
        x = fake.tensor(noise(size)) if near == "gpu" else noise(size)
        blank = torch.zeros(size).byte()
        y = fake.tensor(blank, 1) if far == "gpu" else blank
        two.settle(x, y)
        for engine, place in ((two.near, near), (two.far, far)):
            assert place == "cpu" or two.pair(engine) == ""
        for turn in range(3):
            values = noise(size, turn + 2)
            fake.poke(x, values) if near == "gpu" else x.copy_(values)
            before = staged(fake)
            two.write(x, y, require="rdma").wait(20)
            assert torch.equal(fake.peek(y) if far == "gpu" else y, values)
            assert staged(fake) == before
            back = fake.tensor(torch.zeros(size).byte()) if near == "gpu" else torch.zeros(size)
            if near == "gpu":
                with two.far.register(y, "read") as segment:
                    remote: Any = two.near.open(segment.ticket())
                    two.near.read(remote, back).wait(20)
                assert torch.equal(fake.peek(back), values)
                assert staged(fake) == before


def test_small_slices_and_messages_go_through_the_host(fabric: Fabric, fake: Fake) -> None:
    with Two() as two:
        x, y = fake.tensor(noise(64 * KIB)), fake.tensor(torch.zeros(64 * KIB).byte(), 1)
        two.settle(x, y)
        for size in (1, 8, 1000, 1024, 1025, 5000):
            fake.poke(y, torch.zeros(64 * KIB).byte())
            two.write(x[:size], y[:size]).wait(20)
            assert torch.equal(fake.peek(y)[:size], noise(64 * KIB)[:size])
            assert not fake.peek(y)[size:].any()


def test_blocks_of_caches(fabric: Fabric, fake: Fake) -> None:
    """Scattered at both ends: reads of many pieces, and tails of slices that are small."""
    blocks, block_bytes, layers = 64, 3000, 3
    with Two() as two:
        values = [noise(blocks * block_bytes, n).view(blocks, -1) for n in range(layers)]
        ours = [fake.tensor(value) for value in values]
        theirs = [fake.tensor(torch.full_like(value, 77), 1) for value in values]
        near, far = tent.KVCache(ours, engine=two.near), tent.KVCache(theirs, engine=two.far)
        remote: Any = two.near.open(far.ticket())
        sources = random.Random(1).sample(range(blocks), 40)
        targets = random.Random(2).sample(range(blocks), 40)
        two.settle(ours[0], theirs[0])
        fake.poke(theirs[0], torch.full_like(values[0], 77))
        before = staged(fake)
        for _ in range(3):
            two.near.write_blocks(near, sources, remote, targets).wait(20)
        few = layers * len(sources) * 3 * 1024  # Slices of up to 1 KiB may go through the host.
        assert sum(staged(fake)) - sum(before) <= 2 * few
        rest = sorted(set(range(blocks)) - set(targets))
        for value, layer in zip(values, theirs, strict=True):
            assert torch.equal(fake.peek(layer)[targets], value[sources])
            assert (fake.peek(layer)[rest] == 77).all()


REFUSALS = {
    "neither": "cannot be registered",
    "unreached": "gave wrong bytes",
    "unordered": "does not say when writes",
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_pair_that_does_not_work_is_left_out_and_said(
    fabric: Fabric, fake: Fake, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The bytes go through the host's memory at that end, over the same rail."""
    size = 3 * MIB
    if fault == "neither":
        fake.c.gpudirect(False, True, True)
    elif fault == "unordered":
        fake.c.gpudirect(True, False, False)
    else:
        misses_gpus(fabric, 0)
        misses_gpus(fabric, 1)
    with Two() as two:
        x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
        two.settle(x, y)
        for engine in (two.near, two.far):
            assert REFUSALS[fault] in two.pair(engine)
        before = staged(fake)
        two.write(x, y, require="rdma").wait(20)
        assert torch.equal(fake.peek(y), noise(size))
        assert staged(fake) == (before[0] + size, before[1] + size)
        until(lambda: "does not move the memory of cuda:0 by itself" in caplog.text)
        assert REFUSALS[fault] in caplog.text


def test_one_device_may_work_where_another_does_not(fabric: Fabric, fake: Fake) -> None:
    """fake1 does not reach the GPU: bytes leave ours directly, and come through the host there."""
    misses_gpus(fabric, 1)
    size = 3 * MIB
    with Two() as two:
        x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
        two.settle(x, y)
        assert (two.pair(two.near), two.pair(two.far) != "") == ("", True)
        before = staged(fake)
        two.write(x, y).wait(20)
        assert torch.equal(fake.peek(y), noise(size))
        assert staged(fake) == (before[0], before[1] + size)


def test_writes_are_flushed_where_the_gpu_does_not_order_them(fabric: Fabric, fake: Fake) -> None:
    fake.c.gpudirect(True, False, True)
    with Two() as two:
        x, y = noise(MIB), fake.tensor(torch.zeros(MIB).byte(), 1)
        two.settle(x, y)
        before = fake.c.calls("cuFlushGPUDirectRDMAWrites")
        two.write(x, y).wait(20)
        assert torch.equal(fake.peek(y), x)
        assert fake.c.calls("cuFlushGPUDirectRDMAWrites") > before


def test_with_checksums_the_host_sees_the_bytes(fabric: Fabric, fake: Fake) -> None:
    """At either end: what the sender sums, the receiver must be able to sum."""
    for checksums in ((True, False), (True, True), (False, True)):
        near, far = (
            tent.Engine(tent.Settings(rdma_devices=(n,), transports=("rdma",), checksum=on))
            for n, on in zip(("fake0", "fake1"), checksums, strict=True)
        )
        x, y = fake.tensor(noise(MIB)), fake.tensor(torch.zeros(MIB).byte(), 1)
        with closing(near), closing(far), far.register(y, "write") as segment:
            remote: Any = near.open(segment.ticket())
            for _ in range(3):
                near.write(x, remote).wait(20)
            assert torch.equal(fake.peek(y), noise(MIB))


def test_nothing_stays_registered(fabric: Fabric, fake: Fake) -> None:
    before = fabric.regions
    with Two() as two:
        x, y = fake.tensor(noise(MIB)), fake.tensor(torch.zeros(MIB).byte(), 1)
        two.settle(x, y)
        two.write(x, y).wait(20)
    until(lambda: fabric.regions == before)


@pytest.mark.parametrize("end", ["cancel", "timeout", "close"])
def test_nothing_lands_after_the_end(fabric: Fabric, fake: Fake, end: str, seed: int) -> None:
    """P1: a device that writes into a GPU by itself has stopped when the transfer has ended."""
    chance = random.Random(seed)
    size = 8 * MIB
    with Two() as two:
        x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
        two.settle(x, y)
        for device in range(4):
            fabric.rate(device, 60e6, 20e-6)  # What is under way takes some 30 ms.
        for turn in range(6):
            canary = torch.full((size,), 200 + turn).byte()
            segment = two.far.register(y, "write")
            remote: Any = two.near.open(segment.ticket())
            timeout = chance.uniform(0.01, 0.08) if end == "timeout" else None
            transfer = two.near.write(x, remote, timeout=timeout)
            if end != "timeout":
                time.sleep(chance.uniform(0.01, 0.08))
            if end == "cancel":
                transfer.cancel()
            elif end == "close":
                segment.close()  # The owner's word is enough: the sender may hear of it later.
            if end != "close":
                transfer.exception(20)
            fake.poke(y, canary)
            time.sleep(0.1)  # Whatever still went would land within it.
            intact = torch.equal(fake.peek(y), canary)  # pytest cannot show a fake tensor
            assert intact
            transfer.exception(20)
            segment.close()


def test_a_rail_that_dies_is_healed(fabric: Fabric, fake: Fake) -> None:
    """What was sent directly goes again over another rail, through the host's memory."""
    size = 24 * MIB
    with Two("tcp") as two:
        x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
        two.settle(x, y)
        for device in range(4):
            fabric.rate(device, 300e6, 20e-6)
        fake.poke(y, torch.zeros(size).byte())
        with two.far.register(y, "write") as segment:
            remote: Any = two.near.open(segment.ticket())
            transfer = two.near.write(x, remote)
            until(lambda: bool(fake.peek(y)[:: 64 * KIB].count_nonzero() > 20))
            fabric.port(0, False)
            transfer.wait(20)
            assert torch.equal(fake.peek(y), noise(size))
            fabric.port(0, True)
