"""Tests of whole programs on a real GPU: models that are trained on it by several ranks, arrays of
CuPy, processes that do not see the GPU, and the allocator's other kind of memory. Skipped without
a GPU; benchmarks/gpu.sh runs them."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.groups import run_group
from tests.pairs import two_engines
from torch_tent.engines import Engine
from torch_tent.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
MIB = 1 << 20
WAIT_S = 30.0


# ---- training -----------------------------------------------------------------------------------


def model() -> nn.Module:
    """The same one at every rank."""
    torch.manual_seed(3)
    layers = [nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8)]
    return nn.Sequential(*layers).cuda()


def inputs(steps: int, size: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(steps, size, 16, 256, generator=draw).cuda()


def trained(net: nn.Module, given: torch.Tensor) -> list[torch.Tensor]:
    """The parameters' values after a step for each of `given`."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for x in given:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


def by_ddp(rank: int, size: int) -> None:
    steps = inputs(4, size)
    alone = trained(model(), steps.flatten(1, 2))
    # Small buckets, so that several reductions are under way beside the backward pass.
    ddp = nn.parallel.DistributedDataParallel(model(), device_ids=[0], bucket_cap_mb=0.5)
    for ours, theirs in zip(trained(ddp, steps[:, rank]), alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def by_fsdp(rank: int, size: int) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    steps = inputs(4, size)
    alone = trained(model(), steps.flatten(1, 2))
    sharded: Any = model()
    for layer in sharded:
        fully_shard(layer)
    fully_shard(sharded)
    for ours, theirs in zip(trained(sharded, steps[:, rank]), alone, strict=True):
        assert isinstance(ours, DTensor)
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [by_ddp, by_fsdp])
def test_two_ranks_on_one_gpu_train_as_one_does(how: Any) -> None:
    run_group(how, 2)


def pipeline(rank: int, size: int) -> None:
    """Activations go forth, gradients back, without a wait of the host in between."""
    torch.manual_seed(rank)
    layer = nn.Linear(512, 512, device="cuda")
    for step in range(5):
        if rank == 0:
            x = torch.full((64, 512), 1.0 + step, device="cuda")
            y = layer(x)
            dist.send(y.detach(), 1)
            dist.recv(gradient := torch.empty_like(y), 1)
            y.backward(gradient)
        else:
            dist.recv(y := torch.empty(64, 512, device="cuda"), 0)
            layer(y.requires_grad_()).sum().backward()
            assert y.grad is not None
            dist.send(y.grad, 0)
    sums = torch.stack([p.grad.abs().sum() for p in layer.parameters() if p.grad is not None])
    assert bool((sums > 0).all())
    assert bool(sums.isfinite().all())


def test_a_pipeline() -> None:
    run_group(pipeline, 2)


# ---- CuPy ---------------------------------------------------------------------------------------


def test_arrays_of_cupy() -> None:
    """From its current stream, to its current stream, without a synchronisation."""
    cupy = pytest.importorskip("cupy")
    with two_engines(transports=("shm", "cuda_ipc")) as pair, cupy.cuda.Stream(non_blocking=True):
        y = cupy.zeros(MIB, dtype=cupy.float32)
        for turn in range(20):
            x = cupy.random.random(MIB, dtype=cupy.float32) + turn
            x *= 2
            pair.exchange(x, y)
            assert bool((x == y).all())


# ---- who sees what ------------------------------------------------------------------------------


def owner(pipe: Connection) -> None:
    """Has 8 MiB of GPU memory that others may write, and says what is in it."""
    with contextlib.closing(Engine(Settings(transports=("shm",)))) as engine:
        x = torch.zeros(8 * MIB, dtype=torch.uint8, device="cuda")
        segment = engine.register(x, "read-write")
        pipe.send(segment.ticket())
        pipe.recv()
        pipe.send(int(x.sum(dtype=torch.int64)))


def blind(pipe: Connection, ticket: bytes) -> None:
    """Sees no GPU, writes into one, and reads from it."""
    with contextlib.closing(Engine(Settings(transports=("shm",)))) as engine:
        remote: Any = engine.open(ticket)
        engine.write(torch.full((8 * MIB,), 3, dtype=torch.uint8), remote).wait(WAIT_S)
        back = torch.zeros(8 * MIB, dtype=torch.uint8)
        engine.read(remote, back).wait(WAIT_S)
        pipe.send((bool((back == 3).all()), torch.cuda.is_available()))


@contextlib.contextmanager
def process(target: Any, *args: Any, **environment: str) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *args), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        child.start()
    try:
        yield pipe
        child.join(WAIT_S)
        assert child.exitcode == 0
    finally:
        child.kill()


def answer(pipe: Any) -> Any:
    assert pipe.poll(60), "the other process did not answer"
    return pipe.recv()


def test_a_process_that_sees_no_gpu_writes_into_one() -> None:
    with process(owner) as first:
        with process(blind, answer(first), CUDA_VISIBLE_DEVICES="") as second:
            assert answer(second) == (True, False)
        first.send("sum")
        assert answer(first) == 3 * 8 * MIB


# ---- memory that has no name for other processes ------------------------------------------------


def in_expandable_segments(pipe: Connection) -> None:
    found = []
    for transports in (("shm",), ("shm", "cuda_ipc")):
        with two_engines(transports=transports) as pair:
            x = torch.arange(8 * MIB, device="cuda", dtype=torch.int32)
            y = torch.zeros_like(x)
            pair.exchange(x, y)
            found.append(torch.equal(x, y))
    pipe.send(found)


def test_expandable_segments() -> None:
    expandable = "expandable_segments:True"  # The first of the names is that of older versions.
    names = {"PYTORCH_CUDA_ALLOC_CONF": expandable, "PYTORCH_ALLOC_CONF": expandable}
    with process(in_expandable_segments, **names) as pipe:
        assert answer(pipe) == [True, True]
