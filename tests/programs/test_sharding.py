"""Stage: tests. FSDP2, DTensor on meshes of one and two dimensions, and tensor parallelism, on tent
and on gloo."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tests.groups import run_group
from tests.programs.twins import model, parameters, same_as_gloo, train


def sharded(module: nn.Module, **options: object) -> nn.Module:
    for layer in module.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    fully_shard(module, **options)
    return module


def fsdp(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Parameters whose sizes no number of ranks divides; clipped gradients."""
    module = sharded(model(), mesh=init_device_mesh("cpu", (size,)))
    train(module, rank, 3)
    module(torch.full((4, 20), 1.0 + rank)).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    assert isinstance(norm, DTensor)
    return parameters(module) | {"norm": norm.full_tensor()}


def fsdp_halves(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Parameters travel as bfloat16, gradients are summed as float32, and nothing is kept whole."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (size,))
    module = sharded(model(), mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        x = torch.randn(8, 20, generator=generator)
        module(x).float().square().sum().backward()
    return {n: p.grad.full_tensor() for n, p in module.named_parameters()}  # type: ignore


def fsdp_whole_state(rank: int, size: int) -> dict[str, torch.Tensor]:
    """A whole state dict into a sharded model, and back."""
    module = sharded(model(), mesh=init_device_mesh("cpu", (size,)))
    whole = {name: torch.full_like(p, 0.1) for name, p in model().state_dict().items()}
    set_model_state_dict(module, whole if rank == 0 else {}, options=whole_from_rank_0())
    train(module, rank, 2)
    return {n: t.full_tensor() for n, t in get_model_state_dict(module).items()}


def whole_from_rank_0():  # type: ignore[no-untyped-def]
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def hybrid(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Sharded within rows of a mesh, replicated over its columns."""
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copies", "shards"))
    module = sharded(model(), mesh=mesh)
    train(module, rank, 3)
    return parameters(module)


def tensor_parallel(rank: int, size: int) -> dict[str, torch.Tensor]:
    module = model()
    mesh = init_device_mesh("cpu", (size,))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel(), "3": SequenceParallel()}
    parallelize_module(module, mesh, {name: plan[name] for name in ("0", "2")})
    train(module, 0, 3)  # All ranks see the same data.
    return parameters(module)


def both_parallel(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Tensor parallelism within rows, FSDP2 over the columns of a mesh."""
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("data", "model"))
    module = model()
    parallelize_module(module, mesh["model"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    sharded(module, mesh=mesh["data"])
    train(module, rank // (size // 2), 3)
    return parameters(module)


def redistribution(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Every way from one placement to another, on meshes of one and, with room, two dimensions."""
    shapes = [(size,)] + ([(2, size // 2)] if size > 3 else [])
    whole = torch.arange(7 * 9, dtype=torch.float32).view(7, 9)
    found = {}
    for shape in shapes:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("a", "b")[: len(shape)])
        ways = list(itertools.product([Replicate(), Shard(0), Shard(1)], repeat=len(shape)))
        for first, second in itertools.product(ways, ways):
            placed = distribute_tensor(whole, mesh, first)
            moved = placed.redistribute(placements=second)
            assert torch.equal(moved.full_tensor(), whole)
            found[f"{first} {second}"] = (moved @ moved.T).full_tensor()
        parts = DTensor.from_local(whole + rank, mesh, [Partial()] * len(shape))
        for way in ways:
            found[f"sum {way}"] = parts.redistribute(placements=way).full_tensor()
    return found


@pytest.mark.timeout(240)
def test_two_ranks_get_the_bits_that_gloo_gives() -> None:
    programs = [fsdp, fsdp_halves, fsdp_whole_state, tensor_parallel, redistribution]
    same_as_gloo(2, programs)


@pytest.mark.timeout(240)
def test_four_ranks_get_what_gloo_gives() -> None:
    """Whole numbers of floats have one sum; the rest depends on the order in its last bits."""
    same_as_gloo(4, [redistribution])
    same_as_gloo(4, [fsdp, hybrid, both_parallel], tolerance=1e-4)


def many_meshes(rank: int, size: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
    flat = mesh._flatten("all")
    for name, count in (("row", 2), ("column", 2)):
        group = mesh.get_group(name)
        assert dist.get_backend(group) == "tent"
        x = torch.ones(5)
        dist.all_reduce(x, group=group)
        assert x.tolist() == [count] * 5
    x = torch.full((5,), float(rank))
    dist.all_reduce(x, group=flat.get_group())
    assert x.tolist() == [6.0] * 5
    assert list(mesh.get_coordinate() or ()) == [rank // 2, rank % 2]


def test_meshes_make_groups_of_their_own() -> None:
    run_group(many_meshes, 4)
