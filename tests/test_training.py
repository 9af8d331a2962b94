"""Stage: tests. Programs that train on torch.distributed, unchanged but for the backend's name: the
parameters are those that gloo gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from tests.groups import run_group

STEPS = 4


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(20, 330), nn.GELU(), nn.Linear(330, 64), nn.LayerNorm(64), nn.Linear(64, 5)
    )


def train(module: nn.Module, rank: int, rounds: int = STEPS) -> None:
    """A few steps on data that differs from rank to rank."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(rounds):
        x, y = (torch.randn(16, n, generator=generator) for n in (20, 5))
        nn.functional.mse_loss(module(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def values(module: nn.Module) -> list[torch.Tensor]:
    found = [p.full_tensor() if isinstance(p, DTensor) else p for p in module.parameters()]
    return [p.detach().clone() for p in found]


def ddp(rank: int, size: int, **options: Any) -> list[torch.Tensor]:
    module = DistributedDataParallel(model(), bucket_cap_mb=0.01, **options)
    train(module, rank)
    return values(module)


def ddp_plain(rank: int, size: int) -> list[torch.Tensor]:
    return ddp(rank, size, gradient_as_bucket_view=True)


def ddp_hook(rank: int, size: int) -> list[torch.Tensor]:
    """Gradients travel as float16; the hook chains on the future of the all_reduce."""
    module = DistributedDataParallel(model(), bucket_cap_mb=0.01)
    module.register_comm_hook(None, default_hooks.fp16_compress_hook)
    train(module, rank)
    return values(module)


def ddp_join(rank: int, size: int) -> list[torch.Tensor]:
    """Ranks with different numbers of steps; a parameter that some steps do not use."""
    torch.manual_seed(1)
    inner = nn.ModuleDict({"used": nn.Linear(20, 5), "rest": nn.Linear(20, 5)})
    inner.forward = lambda x: inner["used"](x)  # type: ignore[method-assign]
    module = DistributedDataParallel(inner, find_unused_parameters=True)
    with module.join():
        train(module, rank, STEPS + rank)
    return values(module)


def fsdp(rank: int, size: int) -> list[torch.Tensor]:
    module = model()
    mesh = init_device_mesh("cpu", (size,))
    for layer in module:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    train(module, rank)
    return values(module)


def tensor_parallel(rank: int, size: int) -> list[torch.Tensor]:
    module = model()
    mesh = init_device_mesh("cpu", (size,))
    parallelize_module(module, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    train(module, 0)  # All ranks see the same data.
    return values(module)


def redistribution(rank: int, size: int) -> list[torch.Tensor]:
    """Every way from one placement to another, on a mesh of two dimensions where there is room."""
    shape = (2, size // 2) if size % 2 == 0 and size > 2 else (size,)
    names = ("a", "b")[: len(shape)]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    whole = torch.arange(7 * 9, dtype=torch.float32).view(7, 9)
    ways = [Replicate(), Shard(0), Shard(1)]
    found = []
    for first in ways:
        for second in ways:
            placed = distribute_tensor(whole, mesh, [first] * len(shape))
            moved = placed.redistribute(placements=[second] * len(shape))
            assert torch.equal(moved.full_tensor(), whole)
            found.append((moved @ moved.T).full_tensor())
    return found


def functional(rank: int, size: int) -> list[torch.Tensor]:
    """Functional collectives, as torch.compile traces them."""
    from torch.distributed import _functional_collectives as collectives

    group = dist.group.WORLD
    assert group is not None
    x = torch.arange(12.0).view(4, 3) + rank

    def program(t: torch.Tensor) -> torch.Tensor:
        total = collectives.all_reduce(t, "sum", group)
        every = collectives.all_gather_tensor(total, 0, group)
        return collectives.reduce_scatter_tensor(every, "sum", 0, group) * 2

    many = collectives.all_reduce_coalesced([x, x + 1], "max", group)
    compiled = torch.compile(program, backend="aot_eager")
    assert torch.equal(compiled(x), program(x))
    return [program(x), *many]


def all_of(
    rank: int, size: int, programs: list[Callable[[int, int], list[torch.Tensor]]]
) -> dict[str, list[torch.Tensor]]:
    """One after the other in one group: what takes long is to start and to import."""
    return {program.__name__: program(rank, size) for program in programs}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("size", "programs"),
    [
        (2, [ddp_plain, ddp_hook, ddp_join, fsdp, tensor_parallel, functional]),
        (4, [redistribution]),
    ],
)
def test_programs_give_the_bits_that_gloo_gives(
    size: int, programs: list[Callable[[int, int], list[torch.Tensor]]]
) -> None:
    """Two operands have one order, so two ranks must agree with gloo bit by bit."""
    ours = run_group(all_of, size, programs, timeout=110.0)
    theirs = run_group(all_of, size, programs, timeout=110.0, backend="gloo")
    for rank in range(size):
        for name, truth in theirs[rank].items():
            made = ours[rank][name]
            assert len(made) == len(truth) > 0, name
            assert all(x.isfinite().all() for x in made), name
            assert all(torch.equal(x, y) for x, y in zip(made, truth, strict=True)), name
    if size == 2:
        assert not torch.equal(ours[0]["ddp_plain"][0], values(model())[0]), "nothing was learned"
