"""Tests of CUDA tensors on a real GPU: what tests/test_cuda.py shows on a fake driver, with real
kernels and streams. Skipped without a GPU; benchmarks/gpu.sh runs them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_tent as tent
from tests import torch_on_gpu
from tests.groups import run_group
from tests.pairs import Pair, two_engines
from torch_tent.engines import Engine
from torch_tent.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
MIB = 1 << 20
WAIT_S = 20.0


@pytest.fixture(params=[("tcp",), ("shm",), ("shm", "cuda_ipc")], ids=["tcp", "host", "direct"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with two_engines(transports=request.param) as found:
        yield found


def noise(count: int, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("size", [1, 8192, 9 * MIB + 5, 256 * MIB])
@pytest.mark.parametrize("ends", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_every_byte_arrives(pair: Pair, ends: tuple[str, str], size: int) -> None:
    x, y = noise(size).to(ends[0]), torch.zeros(size, dtype=torch.uint8, device=ends[1])
    pair.exchange(x, y)
    assert torch.equal(x.cpu(), y.cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_views_and_dtypes(pair: Pair, dtype: torch.dtype) -> None:
    x = noise(64 * 512).view(64, 512).to("cuda").to(dtype)
    y = torch.zeros(64, 512, device="cuda").to(dtype)
    pair.exchange(x[::2, 32:], y[::2, 32:])
    as_bytes = [t[::2, 32:].contiguous().view(torch.uint8).cpu() for t in (x, y)]
    assert torch.equal(*as_bytes)
    assert not y[1::2].to(torch.float32).any()


def test_blocks_of_caches(pair: Pair) -> None:
    layers = [torch.randn(64, 16, 128, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    landing = [torch.zeros_like(layer) for layer in layers]
    ours, theirs = tent.KVCache(layers, engine=pair.a), tent.KVCache(landing, engine=pair.b)
    remote: Any = pair.a.open(theirs.ticket())
    pair.a.write_blocks(ours, [3, 1, 60], remote, [0, 9, 5], notify=b"n").wait(WAIT_S)
    assert theirs.wait_notification(WAIT_S) is not None
    for layer, landed in zip(layers, landing, strict=True):
        assert torch.equal(layer[[3, 1, 60]], landed[[0, 9, 5]])


def test_many_small_blocks_take_launches(pair: Pair) -> None:
    """Blocks of 2 KiB and some, beside others that must stay as they are."""
    layers = [noise(256 * 2064, n).view(256, 2064).to("cuda") for n in range(8)]
    landing = [torch.full_like(layer, 77) for layer in layers]
    ours, theirs = tent.KVCache(layers, engine=pair.a), tent.KVCache(landing, engine=pair.b)
    remote: Any = pair.a.open(theirs.ticket())
    sources, targets = torch.randperm(256)[:100], torch.randperm(256)[:100]
    for _ in range(3):
        pair.a.write_blocks(ours, sources, remote, targets).wait(WAIT_S)
    rest = sorted(set(range(256)) - set(targets.tolist()))
    for layer, landed in zip(layers, landing, strict=True):
        assert torch.equal(layer[sources.cuda()], landed[targets.cuda()])
        assert (landed[rest] == 77).all()
    gpus = [gpu for engine in (pair.a, pair.b) for gpu in engine.native.stats()["gpus"]]
    assert [gpu["gathers_not"] for gpu in gpus] == ["", ""]
    assert sum(gpu["gathers"] for gpu in gpus) > 2  # Beside the trial of each.


def test_after_a_slow_kernel_and_before_a_read(pair: Pair) -> None:
    """Many times, on the same and on other streams: what was queued before comes first, and what is
    queued after wait() sees the bytes."""
    size = 256 << 10
    x, y = torch.zeros(size, device="cuda"), torch.zeros(size, device="cuda")
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    end, turn = time.monotonic() + 15, 0
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    while time.monotonic() < end and turn < 10000:
        turn += 1
        with torch.cuda.stream(streams[turn % 3]):
            if turn % 3:
                streams[turn % 3].wait_stream(streams[(turn - 1) % 3])
            torch.cuda._sleep(200_000)
            x.fill_(turn)
            sent = pair.a.send(x, 1, group=pair.group_a)
        with torch.cuda.stream(streams[(turn + 1) % 3]):
            received = pair.b.recv(y, 0, group=pair.group_b)
            received.wait(WAIT_S)
            wrong += (y != turn).sum()
        sent.wait(WAIT_S)
        torch.cuda.current_stream().wait_stream(streams[(turn + 1) % 3])
    torch.cuda.synchronize()
    assert turn > 100
    assert int(wrong) == 0


def test_a_kernel_holds_back_its_own_transfer_only(pair: Pair) -> None:
    gpu = torch_on_gpu.use()
    slow, quick = torch.zeros(MIB, device="cuda"), torch.ones(MIB, device="cuda")
    z, y = torch.zeros(MIB), torch.zeros(MIB)
    pair.exchange(quick, y)  # What is loaded and made at first waits for what is queued.
    torch.cuda.synchronize()
    with gpu.stream():
        gpu.hold()
        slow.fill_(5)
        sent = pair.a.send(slow, 1, 1, group=pair.group_a)
    received = pair.b.recv(z, 0, 1, group=pair.group_b)
    pair.exchange(quick, y, tag=2)
    assert not sent.done()
    gpu.go_on()
    received.wait(WAIT_S)
    assert (z == 5).all()
    assert (y == 1).all()


def test_under_graph_capture(pair: Pair) -> None:
    x = torch.ones(8, device="cuda")
    torch.cuda.synchronize()
    graph, refused = torch.cuda.CUDAGraph(), ""
    with torch.cuda.graph(graph):
        x.add_(1)
        try:
            pair.a.send(x, 1, group=pair.group_a)
        except RuntimeError as error:
            refused = str(error)
    assert "captured in a CUDA graph" in refused
    graph.replay()
    torch.cuda.synchronize()
    assert (x == 2).all()


def test_transfers_of_others_leave_a_capture_alone(pair: Pair) -> None:
    """While this thread captures a graph, a transfer that began before goes on."""
    x, y = torch.ones(64 * MIB, device="cuda"), torch.zeros(64 * MIB, device="cuda")
    z = torch.ones(8, device="cuda")
    torch.cuda.synchronize()
    received = pair.b.recv(y, 0, group=pair.group_b)
    sent = pair.a.send(x, 1, group=pair.group_a)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z.add_(1)
        time.sleep(0.02)
    received.wait(WAIT_S)
    sent.wait(WAIT_S)
    graph.replay()
    assert torch.equal(x, y)
    assert (z == 2).all()


def other_process(pipe: Any) -> None:
    """Registers GPU memory, and says what is in it."""
    with contextlib.closing(Engine(Settings(transports=("shm", "cuda_ipc")))) as engine:
        pool = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda")
        y = pool[MIB + 512 : 33 * MIB + 512]  # As the allocator hands out pieces.
        segment = engine.register(y, "read-write")
        pipe.send(segment.ticket())
        while pipe.recv():
            torch.cuda.synchronize()
            pipe.send(y.cpu())


def test_cuda_ipc_between_two_processes() -> None:
    """Every byte, without the host, from memory that is freed and comes again between the turns."""
    context = torch.multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=other_process, args=(theirs,), daemon=True)
    child.start()
    assert pipe.poll(60)
    ticket = pipe.recv()
    with contextlib.closing(Engine(Settings(transports=("shm", "cuda_ipc")))) as engine:
        remote: Any = engine.open(ticket)
        for turn in range(5):
            values = noise(32 * MIB, turn)
            x = values.to("cuda")
            sent = engine.write(x, remote, require="nvlink")
            sent.wait(WAIT_S)
            assert set(sent.report()["rails"]) == {"cuda_ipc"}
            pipe.send(True)
            assert torch.equal(pipe.recv(), values)
            back = torch.zeros_like(x)
            engine.read(remote, back, require="nvlink").wait(WAIT_S)
            assert torch.equal(back.cpu(), values)
            del x, back
            torch.cuda.empty_cache()
        pipe.send(False)
    child.join(20)
    assert child.exitcode == 0


def test_arrays_of_other_libraries(pair: Pair) -> None:
    """By __cuda_array_interface__ alone: torch's tensors have it, too."""

    class Foreign:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | {"stream": 1}

    x, y = torch.randn(MIB, device="cuda"), torch.zeros(MIB, device="cuda")
    pair.exchange(Foreign(x), Foreign(y))
    assert torch.equal(x, y)


def test_freed_storage() -> None:
    x = torch.ones(8 * MIB, device="cuda")
    x.untyped_storage().resize_(16)
    with pytest.raises(ValueError, match="freed or resized"):
        tent.register(x)


def collectives(rank: int, size: int) -> None:
    """Two ranks on one GPU: reductions on it, after a slow kernel, before what is queued later."""
    stream = torch.cuda.Stream()
    for count in (1, 5000, 1 << 20, 9 * MIB + 5):
        x = torch.zeros(count, device="cuda")
        strided = torch.zeros(count, 2, device="cuda")[:, 1]
        gathered = torch.zeros(size * count, device="cuda")
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            x.fill_(rank + 1)
            strided.fill_(rank + 1)
            works = [dist.all_reduce(t, async_op=True) for t in (x, strided)]
            works.append(
                dist.all_gather_into_tensor(gathered, x.clone().fill_(rank), async_op=True)
            )
            for work in works:
                work.wait()
            wrong = (x != 3).sum() + (strided != 3).sum()
            wrong += (gathered.view(size, -1) != torch.arange(size, device="cuda")[:, None]).sum()
            assert int(wrong) == 0, count
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint16):
        x = torch.ones(5000, device="cuda").to(dtype)
        dist.all_reduce(x)
        assert (x.to(torch.int64) == (1 if dtype == torch.bool else 2)).all(), dtype
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(RuntimeError, match="captured in a CUDA graph"):
            dist.all_reduce(x)
        x.fill_(1)
    dist.all_reduce(x.fill_(1))


def test_collectives_of_two_ranks_on_one_gpu() -> None:
    run_group(collectives, 2)
