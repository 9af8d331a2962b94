"""Tests of transfers whose bytes are on GPUs, against a fake driver: every byte arrives, after what
was queued before; copies that end late hold the end back; what cannot work says so at the call."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.fake_cuda import Fake, until
from tests.pairs import WAIT_S, Pair, noise, two_engines

pytest_plugins = ["tests.cuda_fixtures"]

KIB, MIB = 1 << 10, 1 << 20
HOST_PATHS = {"tcp": ("tcp",), "host": ("shm",)}
ENDS = [("gpu", "cpu"), ("cpu", "gpu"), ("gpu", "gpu")]


@pytest.fixture(params=HOST_PATHS)
def pair(request: pytest.FixtureRequest, fake: Fake) -> Iterator[Pair]:
    with two_engines(transports=HOST_PATHS[request.param]) as found:
        yield found


def placed(fake: Fake, values: torch.Tensor, where: str, device: int = 0) -> torch.Tensor:
    return fake.tensor(values, device) if where == "gpu" else values.clone()


def seen(fake: Fake, tensor: torch.Tensor) -> torch.Tensor:
    return fake.peek(tensor) if tensor.is_cuda else tensor


@pytest.mark.parametrize("size", [1, 8, 8 * KIB, 300 * KIB + 1, 9 * MIB + 5])
@pytest.mark.parametrize("ends", ENDS, ids="-".join)
def test_send_and_recv(pair: Pair, fake: Fake, ends: tuple[str, str], size: int) -> None:
    fake.model(jitter_s=0.001)
    x, y = placed(fake, noise(size), ends[0]), placed(fake, torch.zeros(size).byte(), ends[1], 1)
    _, received = pair.exchange(x, y)
    assert received.value() is y
    assert torch.equal(seen(fake, y), noise(size))


@pytest.mark.parametrize("size", [8, 8 * KIB, 5 * MIB + 3])
@pytest.mark.parametrize("ends", ENDS, ids="-".join)
def test_write_and_read(pair: Pair, fake: Fake, ends: tuple[str, str], size: int) -> None:
    fake.model(jitter_s=0.001)
    x, y = placed(fake, noise(size), ends[0]), placed(fake, torch.zeros(size).byte(), ends[1], 1)
    with pair.b.register(y, "read-write") as segment:
        remote = pair.a.open(segment.ticket())
        assert isinstance(remote, tent.RemoteSegment)
        assert remote.device.type == ("cuda" if ends[1] == "gpu" else "cpu")
        pair.a.write(x, remote).wait(WAIT_S)
        assert torch.equal(seen(fake, y), noise(size))
        back = placed(fake, torch.zeros(size).byte(), ends[0])
        pair.a.read(remote, back).wait(WAIT_S)
        assert torch.equal(seen(fake, back), noise(size))


def test_strides_and_views(pair: Pair, fake: Fake) -> None:
    values = torch.arange(64 * 300, dtype=torch.float32).view(64, 300)
    x, y = fake.tensor(values), fake.tensor(torch.zeros(128, 200), 1)
    pair.exchange(x[::2, 50:250], y[:64:2])
    expected = torch.zeros(128, 200)
    expected[:64:2] = values[::2, 50:250]
    assert torch.equal(fake.peek(y), expected)


@pytest.mark.parametrize("ends", ENDS, ids="-".join)
def test_blocks_of_caches(pair: Pair, fake: Fake, ends: tuple[str, str]) -> None:
    fake.model(jitter_s=0.0005)
    blocks, layers = 32, 3
    shape = (2, blocks, 4 * KIB)
    mine = [noise(2 * blocks * 4 * KIB, n).view(shape) for n in range(layers)]
    ours = [placed(fake, values, ends[0]) for values in mine]
    theirs = [placed(fake, torch.zeros(shape).byte(), ends[1], 1) for _ in range(layers)]
    near = tent.KVCache(ours, 1, engine=pair.a)
    far = tent.KVCache(theirs, 1, engine=pair.b)
    remote = pair.a.open(far.ticket())
    assert isinstance(remote, tent.RemoteCache)
    sources, targets = [5, 0, 31, 7], [1, 30, 2, 9]
    pair.a.write_blocks(near, sources, remote, targets, notify=b"done").wait(WAIT_S)
    note = far.wait_notification(WAIT_S)
    assert note is not None
    assert note.payload == b"done"
    for values, layer in zip(mine, theirs, strict=True):
        found = seen(fake, layer)
        assert torch.equal(found[:, targets], values[:, sources])
        rest = [n for n in range(blocks) if n not in targets]
        assert not found[:, rest].any()
    pair.a.read_blocks(remote, targets, near, [10, 11, 12, 13]).wait(WAIT_S)
    for values, layer in zip(mine, ours, strict=True):
        assert torch.equal(seen(fake, layer)[:, [10, 11, 12, 13]], values[:, sources])


@pytest.mark.parametrize("size", [8, 2 * MIB])
@pytest.mark.parametrize("verb", ["send", "write", "read", "recv"])
def test_it_goes_after_what_the_current_stream_has_queued(
    pair: Pair, fake: Fake, verb: str, size: int
) -> None:
    """A kernel that fills the source comes first; one that fills the destination is overwritten."""
    x, y = fake.tensor(torch.zeros(size).byte()), fake.tensor(torch.zeros(size).byte(), 1)
    segment = pair.b.register(y, "read-write")
    remote: Any = pair.a.open(segment.ticket())
    for turn in range(5):
        fake.stream = fake.c.stream()
        fake.poke(x, noise(size, turn))
        fake.poke(y, noise(size, turn + 50))
        late = x if verb in ("send", "write", "read") else y
        fake.kernel(late, 0.01, 77)
        if verb == "write":
            pair.a.write(x, remote).wait(WAIT_S)
            assert (fake.peek(y) == 77).all()
        elif verb == "read":
            pair.a.read(remote, x).wait(WAIT_S)
            assert torch.equal(fake.peek(x), noise(size, turn + 50))
        else:
            source = x if verb == "send" else noise(size, turn)
            pair.exchange(source, y)
            expected = torch.full((size,), 77).byte() if verb == "send" else noise(size, turn)
            assert torch.equal(fake.peek(y), expected)
    segment.close()
    fake.stream = 0


def test_other_transfers_do_not_wait_for_a_stream(pair: Pair, fake: Fake) -> None:
    """A long kernel holds back its own transfer, and no other."""
    slow, quick = fake.tensor(torch.zeros(MIB).byte()), fake.tensor(noise(MIB))
    fake.stream = fake.c.stream()
    fake.kernel(slow, 1.0, 5)
    sent = pair.a.send(slow, 1, 1, group=pair.group_a)
    fake.stream = 0
    y, z = torch.zeros(MIB).byte(), torch.zeros(MIB).byte()
    received = pair.b.recv(z, 0, 1, group=pair.group_b)
    pair.exchange(quick, y, tag=2)
    assert not sent.done()
    assert not received.done()
    assert torch.equal(y, noise(MIB))
    received.wait(WAIT_S)
    assert (z == 5).all()


@pytest.mark.parametrize("end", ["cancel", "timeout", "close"])
@pytest.mark.parametrize("ends", ENDS, ids="-".join)
def test_nothing_is_copied_after_the_end(
    pair: Pair, fake: Fake, ends: tuple[str, str], end: str, seed: int
) -> None:
    """P1, with copies that end late: memory is free to be reused when the transfer has ended."""
    chance = random.Random(seed)
    size = 8 * MIB
    for turn in range(4):
        fake.model(into=200e6, out_of=200e6, jitter_s=0.01)
        x = placed(fake, noise(size), ends[0])
        y = placed(fake, torch.zeros(size).byte(), ends[1], 1)
        segment = pair.b.register(y, "write")
        remote: Any = pair.a.open(segment.ticket())
        timeout = chance.uniform(0.01, 0.06) if end == "timeout" else None
        transfer = pair.a.write(x, remote, timeout=timeout)
        if end != "timeout":
            time.sleep(chance.uniform(0, 0.06))
        if end == "cancel":
            transfer.cancel()
        elif end == "close":
            segment.close()
        transfer.exception(WAIT_S)
        canary = torch.full((size,), 200 + turn).byte()
        if ends[1] == "gpu":
            fake.poke(y, canary)
        else:
            y.copy_(canary)
        fake.idle()
        assert torch.equal(seen(fake, y), canary)
        segment.close()


def test_a_cancel_waits_for_a_slow_copy_at_the_other_end(pair: Pair, fake: Fake) -> None:
    """P1, where the peer's GPU takes longer than a peer that is silent is waited for."""
    fake.model(latency_s=0.6)
    x, y = noise(4 * MIB), fake.tensor(torch.zeros(4 * MIB).byte(), 1)
    with pair.b.register(y, "write") as segment:
        remote: Any = pair.a.open(segment.ticket())
        transfer = pair.a.write(x, remote)
        until(fake.c.working)
        transfer.cancel()
        before = fake.peek(y)
        fake.idle()
        unchanged = torch.equal(fake.peek(y), before)  # pytest cannot show a fake tensor
        assert unchanged


def test_a_cancelled_receive_leaves_its_memory_alone(pair: Pair, fake: Fake, seed: int) -> None:
    chance = random.Random(seed)
    size = 8 * MIB
    for turn in range(4):
        fake.model(into=200e6, jitter_s=0.01)
        y = fake.tensor(torch.zeros(size).byte())
        received = pair.b.recv(y, 0, turn, group=pair.group_b)
        sent = pair.a.send(noise(size), 1, turn, group=pair.group_a)
        time.sleep(chance.uniform(0, 0.05))
        received.cancel()
        canary = torch.full((size,), 250).byte()
        before = canary if received.exception() is not None else noise(size)
        fake.poke(y, before)
        fake.idle()
        assert torch.equal(fake.peek(y), before)
        # A message that had not come before the cancel waits for the next receive.
        other = pair.b.recv(torch.empty(size).byte(), 0, turn, group=pair.group_b)
        sent.exception(WAIT_S)
        other.cancel()
        other.exception(WAIT_S)


def test_page_locked_memory_is_bounded(pair: Pair, fake: Fake) -> None:
    fake.model(into=500e6)
    size = 24 * MIB
    xs = [fake.tensor(noise(size, n)) for n in range(4)]
    ys = [fake.tensor(torch.zeros(size).byte(), 1) for _ in range(4)]
    received = [pair.b.recv(y, 0, n, group=pair.group_b) for n, y in enumerate(ys)]
    sent = [pair.a.send(x, 1, n, group=pair.group_a) for n, x in enumerate(xs)]
    for transfer in [*received, *sent]:
        transfer.wait(60)
    for n, y in enumerate(ys):
        assert torch.equal(fake.peek(y), noise(size, n))
    # Two engines, each 32 MiB each way, and one slice more for each link.
    assert fake.c.pinned() <= 2 * 2 * (32 + 16) * MIB


@pytest.mark.parametrize("side", ["out", "in"])
def test_copies_out_and_in_overlap(pair: Pair, fake: Fake, side: str) -> None:
    """A pipeline: bytes are copied into one GPU nearly as long as they are copied out of the other.
    Were they moved one stage after the other, the two spans would not overlap at all."""
    size = 48 * MIB
    slow, quick = 60e6, 120e6
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
    fake.model(into=slow if side == "in" else quick, out_of=slow if side == "out" else quick)
    pair.exchange(x, y)
    assert torch.equal(fake.peek(y), noise(size))
    out, into = fake.span(0, out_of=True), fake.span(1, out_of=False)
    overlap = min(out[1], into[1]) - max(out[0], into[0])
    assert overlap > 0.4 * (max(out[1], into[1]) - out[0])


def test_the_trace_has_the_copies(pair: Pair, fake: Fake) -> None:
    size = 9 * MIB + 5
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
    for engine in (pair.a, pair.b):
        engine.native.trace(True)
    pair.exchange(x, y)
    out, into = (engine.native.take_copy_trace() for engine in (pair.a, pair.b))
    assert {(device, way) for device, way, *_ in out} == {(0, "out")}
    assert {(device, way) for device, way, *_ in into} == {(1, "in")}
    for copies in (out, into):
        assert sum(copied for _, _, copied, _, _ in copies) == size
        assert all(begun <= ended for *_, begun, ended in copies)
    pair.a.native.trace(False)
    pair.exchange(x, y)
    assert pair.a.native.take_copy_trace() == []


@pytest.mark.parametrize("where", ["cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuEventRecord"])
def test_a_copy_that_fails_ends_its_transfer(pair: Pair, fake: Fake, where: str) -> None:
    size = 6 * MIB
    x, y = fake.tensor(noise(size)), fake.tensor(torch.zeros(size).byte(), 1)
    received = pair.b.recv(y, 0, group=pair.group_b)
    fake.fail(where, after=2, result=719)
    sent = pair.a.send(x, 1, group=pair.group_a)
    errors = [received.exception(WAIT_S), sent.exception(WAIT_S)]
    assert any("CUDA driver says" in str(error) for error in errors)
    pair.exchange(x, y)  # The next one works.
    assert torch.equal(fake.peek(y), noise(size))


def test_no_page_locked_memory(fake: Fake) -> None:
    fake.c.limit_pinned(fake.c.pinned() + 20 * MIB)
    try:
        with two_engines(transports=("tcp",)) as pair:
            y = fake.tensor(torch.zeros(MIB).byte())
            with pytest.raises(RuntimeError, match="out of page-locked host memory"):
                pair.b.register(y, "write")
            pair.exchange(noise(MIB), torch.zeros(MIB).byte())
    finally:
        fake.c.limit_pinned(1 << 62)


def test_a_stream_that_is_being_captured(pair: Pair, fake: Fake) -> None:
    x = fake.tensor(noise(8))
    fake.stream = fake.c.stream()
    fake.c.capture(fake.stream, 1)
    with pytest.raises(RuntimeError, match="captured in a CUDA graph"):
        pair.a.send(x, 1, group=pair.group_a)
    fake.c.capture(fake.stream, 0)
    y = torch.zeros(8).byte()
    pair.exchange(x, y)
    assert torch.equal(y, noise(8))
    fake.stream = 0


class Foreign:
    """An array of another library that has __cuda_array_interface__, and no __dlpack__."""

    def __init__(self, tensor: torch.Tensor, stream: int | None = None, fixed: bool = False):
        self.tensor, self.nbytes = tensor, tensor.nbytes
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": "<f4",
            "data": (tensor.data_ptr(), fixed),
            "strides": None,
            "stream": stream,
            "version": 3,
        }


def test_arrays_of_other_libraries(pair: Pair, fake: Fake) -> None:
    values = torch.arange(3000, dtype=torch.float32).view(3, 1000)
    x, y = fake.tensor(torch.zeros_like(values)), fake.tensor(torch.zeros_like(values), 1)
    stream = fake.c.stream()
    fake.stream = stream
    fake.kernel(x, 0.02, 7)  # What the other library has queued, on the stream that it names.
    fake.stream = 0
    pair.exchange(Foreign(x, stream), Foreign(y))
    assert (fake.peek(y).view(torch.uint8) == 7).all()
    fake.stream = 0
    fake.poke(x, values)
    segment = pair.b.register(Foreign(y), "read-write")
    remote: Any = pair.a.open(segment.ticket())
    assert remote.shape == (3, 1000)
    pair.a.write(Foreign(x, fixed=True), remote).wait(WAIT_S)
    assert torch.equal(fake.peek(y), values)
    with pytest.raises(ValueError, match="read-only Foreign"):
        pair.a.read(remote, Foreign(x, fixed=True))
    odd = Foreign(x)
    del odd.__cuda_array_interface__["data"]
    with pytest.raises(TypeError, match="could not be taken over"):
        pair.a.send(odd, 1, group=pair.group_a)


def test_memory_that_was_freed(pair: Pair, fake: Fake) -> None:
    x = fake.tensor(noise(100 * KIB))
    fake.free(x)
    for call in (pair.a.register, lambda t: pair.a.send(t, 1, group=pair.group_a)):
        with pytest.raises(ValueError, match=r"does not know its memory.*freed or resized"):
            call(x)
    with pytest.raises(ValueError, match=r"layer 0.*freed or resized"):
        tent.KVCache([x.view(10, -1)], engine=pair.a)


def test_layers_on_two_devices(pair: Pair, fake: Fake) -> None:
    layers = [fake.tensor(noise(64).view(8, 8), n) for n in range(2)]
    with pytest.raises(ValueError, match="layer 1 is on cuda:1, layer 0 on cuda:0"):
        tent.KVCache(layers, engine=pair.a)


def test_contexts_are_made_where_memory_is_and_given_back(fake: Fake) -> None:
    before = [fake.c.contexts(n) for n in range(2)]
    pinned = fake.c.pinned()
    with two_engines() as pair:
        pair.exchange(noise(MIB), torch.zeros(MIB).byte())
        assert [fake.c.contexts(n) for n in range(2)] == before
        pair.exchange(fake.tensor(noise(MIB), 1), torch.zeros(MIB).byte())
        assert [fake.c.contexts(n) for n in range(2)] == [before[0], before[1] + 1]
        assert fake.c.pinned() > pinned
    until(lambda: [fake.c.contexts(n) for n in range(2)] == before)
    assert fake.c.pinned() == pinned


def test_checksums_are_of_the_bytes_that_were_copied(fake: Fake) -> None:
    with two_engines(transports=("tcp",), checksum=True) as pair:
        x, y = fake.tensor(noise(3 * MIB)), fake.tensor(torch.zeros(3 * MIB).byte(), 1)
        pair.exchange(x, y)
        assert torch.equal(fake.peek(y), noise(3 * MIB))


def test_without_a_driver() -> None:
    """In a process of its own: which driver there is, is found out once."""
    code = (
        "import torch, torch_tent as tent\n"
        "from torch_tent import cuda\n"
        "from tests.fake_cuda import FakeTensor\n"
        "cuda.LIBRARY = 'libcuda-that-is-not-there.so'\n"
        "x = torch.Tensor._make_subclass(FakeTensor, torch.zeros(4))\n"
        "try:\n"
        "    tent.register(x)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the segment is on cuda:0, but there is no CUDA driver here" in done.stdout
