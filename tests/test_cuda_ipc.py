"""Tests of transfers from GPU to GPU without the host's memory, within one process, against a fake
driver: every byte arrives and none of them through the host; what the path cannot carry takes the
other one, or is an error where it was required; late copies hold the end back."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.fake_cuda import ACROSS, INTO, OUT_OF, Fake
from tests.pairs import WAIT_S, Pair, noise, two_engines, until

pytest_plugins = ["tests.cuda_fixtures"]

KIB, MIB = 1 << 10, 1 << 20
TRANSPORTS = ("shm", "cuda_ipc")


@pytest.fixture
def pair(fake: Fake) -> Iterator[Pair]:
    with two_engines(transports=TRANSPORTS) as found:
        yield found


def rails(transfer: Any) -> set[str]:
    return set(transfer.report()["rails"])


@pytest.mark.parametrize("size", [1, 8 * KIB, 300 * KIB + 1, 9 * MIB + 5])
@pytest.mark.parametrize("device", [0, 1])
def test_send_and_recv(pair: Pair, fake: Fake, size: int, device: int) -> None:
    fake.model(jitter_s=0.001)
    through_host = [fake.copied(n, way) for n in (0, 1) for way in (INTO, OUT_OF)]
    across = fake.copied(device, ACROSS)
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), device)
    sent, received = pair.exchange(x, y, require="nvlink")
    assert torch.equal(fake.peek(y), noise(size))
    assert rails(sent) == rails(received) == {"cuda_ipc"}
    assert fake.copied(device, ACROSS) == across + size
    assert [fake.copied(n, way) for n in (0, 1) for way in (INTO, OUT_OF)] == through_host


@pytest.mark.parametrize("size", [8, 5 * MIB + 3])
def test_write_and_read(pair: Pair, fake: Fake, size: int) -> None:
    fake.model(jitter_s=0.001)
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
    with pair.b.register(y, "read-write") as segment:
        remote: Any = pair.a.open(segment.ticket())
        pair.a.write(x, remote, require="nvlink").wait(WAIT_S)
        assert torch.equal(fake.peek(y), noise(size))
        back = fake.tensor(torch.zeros(size).byte())
        read = pair.a.read(remote, back, require="nvlink")
        read.wait(WAIT_S)
        assert rails(read) == {"cuda_ipc"}
        assert torch.equal(fake.peek(back), noise(size))


def test_it_is_found_without_being_asked_for(pair: Pair, fake: Fake) -> None:
    """The first transfer may begin through the host while the link is made; soon none does."""
    x, y = fake.tensor(noise(MIB)), fake.tensor(torch.zeros(MIB).byte(), 1)
    until(lambda: rails(pair.exchange(x, y)[1]) == {"cuda_ipc"})
    assert torch.equal(fake.peek(y), noise(MIB))


def test_strides_and_views(pair: Pair, fake: Fake) -> None:
    values = torch.arange(64 * 300, dtype=torch.float32).view(64, 300)
    x, y = fake.tensor(values), fake.tensor(torch.zeros(128, 200), 1)
    pair.exchange(x[::2, 50:250], y[:64:2], require="nvlink")
    expected = torch.zeros(128, 200)
    expected[:64:2] = values[::2, 50:250]
    assert torch.equal(fake.peek(y), expected)


def test_blocks_of_caches(pair: Pair, fake: Fake) -> None:
    """More pieces than one description holds, in three allocations."""
    fake.model(jitter_s=0.0002)
    blocks, layers = 500, 3
    shape = (2, blocks, 256)
    mine = [noise(2 * blocks * 256, n).view(shape) for n in range(layers)]
    near = tent.KVCache([fake.tensor(v) for v in mine], 1, engine=pair.a)
    theirs = [fake.tensor(torch.zeros(shape).byte(), 1) for _ in range(layers)]
    far = tent.KVCache(theirs, 1, engine=pair.b)
    remote: Any = pair.a.open(far.ticket())
    chance = random.Random(7)
    sources, targets = (chance.sample(range(blocks), 300) for _ in range(2))
    moved = pair.a.write_blocks(near, sources, remote, targets, notify=b"done", require="nvlink")
    moved.wait(WAIT_S)
    assert far.wait_notification(WAIT_S) is not None
    for values, layer in zip(mine, theirs, strict=True):
        found = fake.peek(layer)
        assert torch.equal(found[:, targets], values[:, sources])
        rest = [n for n in range(blocks) if n not in set(targets)]
        assert not found[:, rest].any()


def test_it_goes_after_what_the_current_stream_has_queued(pair: Pair, fake: Fake) -> None:
    x, y = fake.tensor(torch.zeros(MIB).byte()), fake.tensor(torch.zeros(MIB).byte(), 1)
    for late in (x, y):
        fake.stream = fake.c.stream()
        fake.kernel(late, 0.02, 77)
        pair.exchange(x, y, require="nvlink")
        assert (fake.peek(y) == 77).all()
        fake.poke(x, torch.full((MIB,), 77).byte())
        fake.stream = 0


@pytest.mark.parametrize("ends", ["cpu-gpu", "gpu-cpu"])
def test_host_memory_is_no_business_of_it(pair: Pair, fake: Fake, ends: str) -> None:
    host, gpu = noise(MIB), fake.tensor(torch.zeros(MIB).byte())
    x, y = (host, gpu) if ends == "cpu-gpu" else (gpu, host)
    sent, received = pair.exchange(x, y)
    assert "cuda_ipc" not in rails(sent) | rails(received)
    received = pair.b.recv(y, 0, 2, group=pair.group_b)
    with pytest.raises(tent.TransferError, match="a GPU's memory"):
        pair.a.send(x, 1, 2, group=pair.group_a, require="nvlink").wait(WAIT_S)
    received.cancel()


def test_gpus_without_access_to_each_other(fake: Fake) -> None:
    fake.c.peers(False)
    with two_engines(transports=TRANSPORTS) as pair:
        x, y = fake.tensor(noise(MIB)), fake.tensor(torch.zeros(MIB).byte(), 1)
        segment = pair.b.register(y, "write")
        remote: Any = pair.a.open(segment.ticket())
        with pytest.raises(tent.TransferError, match="cuda:1 cannot read our cuda:0"):
            pair.a.write(x, remote, require="nvlink").wait(WAIT_S)
        _, received = pair.exchange(x, y)
        assert rails(received) == {"shm"}
        assert torch.equal(fake.peek(y), noise(MIB))
        z = fake.tensor(torch.zeros(MIB).byte())  # The same GPU's memory is always in reach.
        pair.exchange(x, z, require="nvlink")
        assert torch.equal(fake.peek(z), noise(MIB))


def test_memory_that_no_other_process_can_open(
    pair: Pair, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    """As that of expandable segments."""
    caplog.set_level(logging.WARNING, "torch_tent")
    x = fake.tensor(noise(MIB), shareable=False)
    y = fake.tensor(torch.zeros(MIB).byte(), 1)
    segment = pair.b.register(y, "write")
    remote: Any = pair.a.open(segment.ticket())
    with pytest.raises(tent.TransferError, match="expandable_segments"):
        pair.a.write(x, remote, require="nvlink").wait(WAIT_S)
    written = pair.a.write(x, remote)
    written.wait(WAIT_S)
    assert rails(written) == {"shm"}
    assert torch.equal(fake.peek(y), noise(MIB))
    until(lambda: "through the host's memory" in caplog.text)


def test_checksums_are_taken_where_the_host_sees_the_bytes(fake: Fake) -> None:
    with two_engines(transports=TRANSPORTS, checksum=True) as pair:
        x, y = fake.tensor(noise(MIB)), fake.tensor(torch.zeros(MIB).byte(), 1)
        assert rails(pair.exchange(x, y)[1]) == {"shm"}
        segment = pair.b.register(y, "write")
        remote: Any = pair.a.open(segment.ticket())
        with pytest.raises(tent.TransferError, match="checksums"):
            pair.a.write(x, remote, require="nvlink").wait(WAIT_S)


@pytest.mark.parametrize("end", ["cancel", "timeout", "close"])
@pytest.mark.parametrize("verb", ["write", "read"])
def test_nothing_is_copied_after_the_end(
    pair: Pair, fake: Fake, verb: str, end: str, seed: int
) -> None:
    """P1, with copies that end late: both ends' memory is free when the transfer has ended."""
    chance = random.Random(seed)
    size = 8 * MIB
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
    pair.exchange(x, y, require="nvlink")
    for turn in range(4):
        fake.model(across=200e6, jitter_s=0.01)
        fake.poke(x, noise(size))
        far, near = (y, x) if verb == "write" else (x, y)
        segment = pair.b.register(far, verb)
        remote: Any = pair.a.open(segment.ticket())
        timeout = chance.uniform(0.01, 0.06) if end == "timeout" else None
        if verb == "write":
            transfer = pair.a.write(near, remote, timeout=timeout, require="nvlink")
        else:
            transfer = pair.a.read(remote, near, timeout=timeout, require="nvlink")
        if end != "timeout":
            time.sleep(chance.uniform(0, 0.06))
        if end == "cancel":
            transfer.cancel()
        elif end == "close":
            segment.close()
        transfer.exception(WAIT_S)
        segment.close()
        canary = torch.full((size,), 200 + turn).byte()
        fake.poke(x, torch.full((size,), 100).byte())
        fake.poke(y, canary)
        fake.idle()
        assert torch.equal(fake.peek(y), canary)


def test_a_copy_that_fails_ends_its_transfer(pair: Pair, fake: Fake) -> None:
    size = 6 * MIB
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
    pair.exchange(x, y, require="nvlink")
    received = pair.b.recv(y, 0, 5, group=pair.group_b)
    fake.fail("cuMemcpyDtoDAsync", result=719)
    sent = pair.a.send(x, 1, 5, group=pair.group_a, require="nvlink")
    errors = [received.exception(WAIT_S), sent.exception(WAIT_S)]
    assert any("CUDA driver says" in str(error) for error in errors)
    fake.poke(y, torch.zeros(size).byte())
    pair.exchange(x, y, tag=6, require="nvlink")  # The next one works.
    assert torch.equal(fake.peek(y), noise(size))


def test_a_gpu_that_is_late_is_waited_for(pair: Pair, fake: Fake) -> None:
    """Its link is not given up while others answer: what was begun would have to be waited for."""
    size = 64 * KIB
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
    pair.exchange(x, y, require="nvlink")
    fake.model(latency_s=0.2)
    sent, _ = pair.exchange(x, y)
    assert (rails(sent), sent.report()["fences"]) == ({"cuda_ipc"}, 0)


def test_a_link_that_is_cut_in_the_middle(pair: Pair, fake: Fake, seed: int) -> None:
    """What was begun ends before anything is sent again; every byte arrives."""
    chance = random.Random(seed)
    size = 16 * MIB
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
    pair.exchange(x, y, require="nvlink")
    fake.model(across=150e6, jitter_s=0.005)
    for turn in range(3):
        fake.poke(y, torch.zeros(size).byte())
        received = pair.b.recv(y, 0, turn, group=pair.group_b)
        sent = pair.a.send(x, 1, turn, group=pair.group_a)
        time.sleep(chance.uniform(0.01, 0.05))
        cut(chance.choice([pair.a, pair.b]))
        received.wait(30)
        sent.wait(30)
        assert sent.report()["fences"] > 0
        assert torch.equal(fake.peek(y), noise(size))


def cut(engine: Any) -> None:
    """Closes all links of the engine, as if they had broken."""
    for number in list(engine._control._switchboard._links):
        engine.native.close_link(number, "cut by the test")
