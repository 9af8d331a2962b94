"""Stage: tests. Functional collectives, which return new tensors, on tent and on gloo: eagerly,
with gradients, and compiled, where they become nodes of a graph that starts and awaits them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.groups import run_group
from tests.programs.twins import Tensors, model, parameters, same_as_gloo, train

ROWS, WIDTH = 12, 1000  # Rows that two and three and four ranks divide.


def own_part(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(30 + rank)
    return torch.randint(-50, 50, (ROWS, WIDTH), generator=generator).float()


def every_kind(x: torch.Tensor, group: Any, size: int) -> list[torch.Tensor]:
    """Each collective on what the one before has made, with arithmetic between them."""
    total = functional.all_reduce(x, "sum", group) / 2
    largest = functional.all_reduce(x + 1, "max", group)
    rows = functional.all_gather_tensor(total - x, 0, group)
    columns = functional.all_gather_tensor(largest * 2, 1, group)
    piece = functional.reduce_scatter_tensor(rows, "sum", 0, group)
    strip = functional.reduce_scatter_tensor(columns, "sum", 1, group)
    mixed = functional.all_to_all_single(x * 3, None, None, group)
    first = functional.broadcast(mixed - piece, size - 1, group)
    return [total, largest, rows, columns, piece, strip, mixed, first]


def uneven_exchange(x: torch.Tensor, group: Any, rank: int, size: int) -> torch.Tensor:
    """Rank r keeps or gets more rows the higher it is."""
    share = [2 * r + 1 for r in range(size)]
    received = [share[rank]] * size
    flat = x.flatten()[: sum(share)]
    return functional.all_to_all_single(flat + 1, received, share, group)


def together(x: torch.Tensor, group: Any) -> list[torch.Tensor]:
    """Several tensors in one call."""
    parts = list(x.split([2, 4, 6]))
    sums = functional.all_reduce_coalesced(parts, "sum", group)
    gathered = functional.all_gather_into_tensor_coalesced(parts, group)
    pieces = functional.reduce_scatter_tensor_coalesced(gathered, "sum", [0, 0, 0], group)
    return [*sums, *gathered, *pieces]


def named(found: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(number): functional.wait_tensor(t).clone() for number, t in enumerate(found)}


def eager(rank: int, size: int) -> Tensors:
    x, group = own_part(rank), dist.group.WORLD
    found = every_kind(x, group, size)
    assert torch.equal(x, own_part(rank)), "an input was changed"
    found += [uneven_exchange(x, group, rank, size), *together(x, group)]
    everybody: Any = list(range(size))  # The group may also be given as ranks, or as a mesh.
    found += [functional.all_reduce(x, "sum", everybody)]
    mesh = init_device_mesh("cpu", (size,))
    found += [functional.all_reduce(x, "min", (mesh, 0))]
    return named(found)


def with_gradients(rank: int, size: int) -> Tensors:
    x, group = own_part(rank).requires_grad_(), dist.group.WORLD
    gathered = functional.all_gather_tensor_autograd(x, 0, group)
    piece = functional.reduce_scatter_tensor_autograd(gathered * (rank + 1), "sum", 0, group)
    mixed = functional.all_to_all_single_autograd(piece * 2, None, None, group)
    (mixed * mixed).sum().backward()
    assert x.grad is not None
    return {"gradient": x.grad, "mixed": mixed.detach().clone()}


def compiled(program: Callable[..., list[torch.Tensor]], backend: str, rank: int) -> Tensors:
    """Whole graphs, so that no collective is left to the interpreter."""
    torch.compiler.reset()
    x = own_part(rank)
    fast: Any = torch.compile(program, backend=backend, fullgraph=True)
    first, second = named(fast(x)), named(fast(x + 1))
    for name, expected in named(program(x + 1)).items():
        assert torch.equal(second[name], expected), f"{name} is not what it is eagerly"
    return first


def by_aot_eager(rank: int, size: int) -> Tensors:
    group = dist.group.WORLD

    def program(x: torch.Tensor) -> list[torch.Tensor]:
        found = every_kind(x.square(), group, size)
        return [*found, uneven_exchange(x, group, rank, size), *together(x, group)]

    return compiled(program, "aot_eager", rank)


def by_inductor(rank: int, size: int, folder: str) -> None:
    group = dist.group.WORLD

    def program(x: torch.Tensor) -> list[torch.Tensor]:
        total = functional.all_reduce(x * 2, "sum", group)
        mixed = functional.all_to_all_single(x - total, None, None, group)
        return [total, functional.all_gather_tensor(mixed, 0, group)]

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    with torch._inductor.config.patch({"cpp.simdlen": 1, "compile_threads": 1}):
        compiled(program, "inductor", rank)


def in_place(rank: int, size: int) -> Tensors:
    """Plain calls of torch.distributed in compiled code become functional ones."""

    def program(x: torch.Tensor) -> list[torch.Tensor]:
        y = x * 2
        dist.all_reduce(y)
        out = torch.empty(size * ROWS, WIDTH)
        dist.all_gather_into_tensor(out, y - x)
        piece = torch.empty(ROWS, WIDTH)
        dist.reduce_scatter_tensor(piece, out + 1)
        return [y, out, piece]

    return compiled(program, "aot_eager", rank)


def compiled_ddp(rank: int, size: int) -> Tensors:
    """DDP cuts the graph at its buckets, so that their collectives overlap with what follows."""
    torch.compiler.reset()
    with patch.object(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 4000):
        module = DistributedDataParallel(model(), bucket_cap_mb=0.01)
        fast: Any = torch.compile(module, backend="aot_eager")
        train(fast, rank)
    return parameters(module)


def compiled_fsdp(rank: int, size: int) -> Tensors:
    """The layers are compiled, their collectives happen between them."""
    torch.compiler.reset()
    module = model()
    for layer in module.children():
        if isinstance(layer, nn.Linear):
            layer.compile(backend="aot_eager")
            fully_shard(layer, mesh=init_device_mesh("cpu", (size,)))
    fully_shard(module, mesh=init_device_mesh("cpu", (size,)))
    train(module, rank, 2)
    return parameters(module)


@pytest.mark.timeout(240)
def test_functional_collectives() -> None:
    """Floats that are whole numbers have one sum."""
    same_as_gloo(3, [eager, with_gradients])


@pytest.mark.timeout(240)
def test_compiled_programs() -> None:
    same_as_gloo(2, [by_aot_eager, in_place, compiled_ddp, compiled_fsdp])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_program_that_inductor_compiles(tmp_path: Path) -> None:
    """A compiler of C++ takes a minute or more for its few kernels."""
    run_group(by_inductor, 2, str(tmp_path), timeout=280)
