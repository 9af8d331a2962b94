"""Tests of scattered blocks on GPUs (csrc/device/rows.h), against a fake driver: many small ones
take one launch, others a copy each; all bytes arrive and nothing else is touched, whatever
fails."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.fake_cuda import ACROSS, INTO, OUT_OF, Fake, until
from tests.pairs import WAIT_S, Pair, two_engines

pytest_plugins = ["tests.cuda_fixtures"]

KIB, MIB = 1 << 10, 1 << 20
LAYERS, BLOCKS = 4, 96
COPIES = ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync"]


@pytest.fixture(params=["tcp", "shm"])
def pair(request: pytest.FixtureRequest, fake: Fake) -> Iterator[Pair]:
    # However slow the link, a slice has several blocks.
    with two_engines(
        transports=(request.param,), slice_bytes_min=256 * KIB, gpu_gather_bytes_max=64 * KIB
    ) as found:
        yield found


class Caches:
    """A cache at each end, with every other block, in an order by chance, to be moved."""

    def __init__(self, pair: Pair, fake: Fake, block_bytes: int, ends: str = "gpu gpu") -> None:
        draw = torch.Generator().manual_seed(block_bytes)
        shape = (BLOCKS, block_bytes)
        self.fake = fake
        self.values = [
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw) for _ in range(LAYERS)
        ]
        near, far = ends.split()
        self.ours = [fake.tensor(v) if near == "gpu" else v.clone() for v in self.values]
        blank = torch.full(shape, 77, dtype=torch.uint8)
        self.theirs = [
            fake.tensor(blank, 1) if far == "gpu" else blank.clone() for _ in range(LAYERS)
        ]
        self.near = tent.KVCache(self.ours, engine=pair.a)
        self.far = tent.KVCache(self.theirs, engine=pair.b)
        self.remote: Any = pair.a.open(self.far.ticket())
        order = random.Random(block_bytes)
        self.sources = order.sample(range(0, BLOCKS, 2), BLOCKS // 2)
        self.targets = order.sample(range(1, BLOCKS, 2), BLOCKS // 2)
        self.pair = pair

    def write(self, **words: Any) -> Any:
        return self.pair.a.write_blocks(self.near, self.sources, self.remote, self.targets, **words)

    def seen(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.fake.peek(tensor) if tensor.is_cuda else tensor

    def check(self) -> None:
        rest = sorted(set(range(BLOCKS)) - set(self.targets))
        for values, layer in zip(self.values, self.theirs, strict=True):
            found = self.seen(layer)
            assert torch.equal(found[self.targets], values[self.sources])
            assert (found[rest] == 77).all()


def calls(fake: Fake) -> int:
    return sum(fake.c.calls(name) for name in COPIES)


def gathers(engine: Any) -> int:
    return sum(gpu["gathers"] for gpu in engine.native.stats()["gpus"])


@pytest.mark.parametrize("ends", ["gpu cpu", "cpu gpu", "gpu gpu"])
@pytest.mark.parametrize("block_bytes", [16, 2 * KIB, 16 * KIB + 48])
def test_small_blocks_take_launches_and_no_copies(
    pair: Pair, fake: Fake, ends: str, block_bytes: int
) -> None:
    fake.model(jitter_s=0.001)
    caches = Caches(pair, fake, block_bytes, ends)
    fake.idle()  # The trials are over.
    before = calls(fake)
    caches.write().wait(WAIT_S)
    caches.check()
    assert calls(fake) - before < LAYERS * BLOCKS / 2 / 8
    back = [3 + 2 * n for n in range(len(caches.sources) - 1)]
    pair.a.read_blocks(caches.remote, caches.targets[:-1], caches.near, back).wait(WAIT_S)
    for values, layer in zip(caches.values, caches.ours, strict=True):
        assert torch.equal(caches.seen(layer)[back], values[caches.sources[:-1]])
    assert calls(fake) - before < LAYERS * BLOCKS / 8


@pytest.mark.parametrize("block_bytes", [2 * KIB + 8, 128 * KIB])
def test_odd_and_large_blocks_take_a_copy_each(pair: Pair, fake: Fake, block_bytes: int) -> None:
    caches = Caches(pair, fake, block_bytes)
    before, launched = calls(fake), gathers(pair.a) + gathers(pair.b)
    caches.write().wait(WAIT_S)
    caches.check()
    assert gathers(pair.a) + gathers(pair.b) == launched
    assert calls(fake) - before >= LAYERS * BLOCKS  # Each out of a GPU, and into one.


def test_within_a_gpu_and_from_another_one(fake: Fake) -> None:
    """Engines of one process use each other's memory as it is: a kernel reaches that of its own GPU
    only, so to the other one a copy goes for each block."""
    with two_engines(transports=("shm", "cuda_ipc")) as pair:
        for device, by_kernel in [(0, True), (1, False)]:
            caches = Caches(pair, fake, 4 * KIB)
            for n, values in enumerate(caches.values):
                caches.theirs[n] = fake.tensor(torch.full_like(values, 77), device)
            caches.far = tent.KVCache(caches.theirs, engine=pair.b)
            caches.remote = pair.a.open(caches.far.ticket())
            before, across = fake.c.calls("cuMemcpyDtoDAsync"), fake.copied(device, ACROSS)
            caches.write(require="nvlink").wait(WAIT_S)
            caches.check()
            blocks = LAYERS * BLOCKS // 2
            assert fake.copied(device, ACROSS) - across == blocks * 4 * KIB
            made = fake.c.calls("cuMemcpyDtoDAsync") - before
            assert made < blocks / 8 if by_kernel else made >= blocks


@pytest.mark.parametrize("function", ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"])
def test_a_gpu_on_which_the_kernel_does_not_run(fake: Fake, function: str) -> None:
    """It is said why, and copies do it; a device that comes later is tried by itself."""
    with two_engines(transports=("tcp",)) as pair:
        fake.fail(function, result=218)
        caches = Caches(pair, fake, 4 * KIB)
        caches.write().wait(WAIT_S)
        caches.check()
        [gpu] = pair.a.native.stats()["gpus"]
        assert "the kernel that gathers blocks failed" in gpu["gathers_not"]
        assert gpu["copies"] >= LAYERS * BLOCKS / 2
        assert pair.b.native.stats()["gpus"][0]["gathers_not"] == ""


def test_a_kernel_that_copies_wrong_bytes_is_not_used(fake: Fake) -> None:
    fake.c.spoil(True)
    with two_engines(transports=("tcp",)) as pair:
        caches = Caches(pair, fake, 4 * KIB)
        caches.write().wait(WAIT_S)
        caches.check()
        for engine in (pair.a, pair.b):
            [gpu] = engine.native.stats()["gpus"]
            assert "copies wrong bytes" in gpu["gathers_not"]


def test_it_can_be_turned_off(fake: Fake) -> None:
    loads = fake.c.calls("cuModuleLoadData")
    with two_engines(transports=("tcp",), gpu_gather_bytes_max=0) as pair:
        caches = Caches(pair, fake, 4 * KIB)
        caches.write().wait(WAIT_S)
        caches.check()
        assert fake.c.calls("cuModuleLoadData") == loads
        assert pair.a.native.stats()["gpus"][0]["gathers_not"] == "gpu_gather_bytes_max is 0"


def test_a_launch_that_fails_ends_its_transfer(pair: Pair, fake: Fake) -> None:
    caches = Caches(pair, fake, 4 * KIB)
    fake.idle()  # The trials are over.
    fake.fail("cuLaunchKernel", result=719)
    assert "CUDA driver says" in str(caches.write().exception(WAIT_S))
    caches.write().wait(WAIT_S)
    caches.check()


def test_tables_are_bounded(fake: Fake) -> None:
    """When all are in use, copies do it; when they are free, launches again."""
    with two_engines(transports=("tcp",), slice_bytes_max=16 * KIB) as pair:
        caches = Caches(pair, fake, 2 * KIB)
        fake.idle()
        fake.model(latency_s=0.02)
        transfers = [caches.write() for _ in range(8)]
        for transfer in transfers:
            transfer.wait(WAIT_S)
        caches.check()
        fake.model()
        before = gathers(pair.a)
        caches.write().wait(WAIT_S)
        assert gathers(pair.a) > before


@pytest.mark.parametrize("end", ["cancel", "timeout", "revoke"])
def test_nothing_moves_after_the_end(pair: Pair, fake: Fake, end: str, seed: int) -> None:
    """P1 with launches that end late."""
    chance = random.Random(seed)
    caches = Caches(pair, fake, 16 * KIB)
    for turn in range(6):
        fake.model(into=300e6, out_of=300e6, jitter_s=0.01)
        caches.remote = pair.a.open(caches.far.ticket())
        timeout = chance.uniform(0.005, 0.03) if end == "timeout" else None
        transfer = caches.write(timeout=timeout)
        if end != "timeout":
            time.sleep(chance.uniform(0, 0.03))
        if end == "cancel":
            transfer.cancel()
        elif end == "revoke":
            caches.far.revoke(caches.targets)
        transfer.exception(WAIT_S)
        canary = torch.full((BLOCKS, 16 * KIB), 200 + turn).byte()
        for layer in caches.theirs:
            fake.poke(layer, canary)
        fake.idle()
        for layer in caches.theirs:
            assert torch.equal(fake.peek(layer), canary)


def test_it_goes_after_what_the_stream_has_queued(pair: Pair, fake: Fake) -> None:
    caches = Caches(pair, fake, 4 * KIB)
    fake.stream = fake.c.stream()
    for n, layer in enumerate(caches.ours):
        fake.kernel(layer, 0.01, 50 + n)
    caches.write().wait(WAIT_S)
    fake.stream = 0
    for n, layer in enumerate(caches.theirs):
        assert (fake.peek(layer)[caches.targets] == 50 + n).all()


def test_bytes_are_counted_as_copied(pair: Pair, fake: Fake) -> None:
    caches = Caches(pair, fake, 4 * KIB)
    before = fake.copied(0, OUT_OF), fake.copied(1, INTO)
    caches.write().wait(WAIT_S)
    until(lambda: not fake.c.working())
    moved = LAYERS * BLOCKS // 2 * 4 * KIB
    assert (fake.copied(0, OUT_OF) - before[0], fake.copied(1, INTO) - before[1]) == (moved, moved)
