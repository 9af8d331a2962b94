"""Stage: tests. Functional collectives, eager and under torch.compile, on tent and on gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as collectives

from tests.programs.twins import same_as_gloo


def world() -> Any:
    return dist.group.WORLD


def chain(x: torch.Tensor, size: int) -> torch.Tensor:
    """One collective after the other, with arithmetic that overlaps them."""
    group = world()
    total = collectives.all_reduce(x, "sum", group)
    other = (x * 3).sin()
    every = collectives.all_gather_tensor(total + other, 0, group)
    piece = collectives.reduce_scatter_tensor(every, "sum", 0, group)
    turned = collectives.all_to_all_single(piece, None, None, group)
    largest = collectives.all_reduce(turned, "max", group)
    return collectives.broadcast(largest * 2, 0, group)


def eager(rank: int, size: int) -> dict[str, torch.Tensor]:
    x = torch.arange(12.0).view(4, 3) + rank
    group = world()
    many = collectives.all_reduce_coalesced([x, x + 1], "max", group)
    rows = collectives.all_gather_into_tensor_coalesced([x, x + 1], group)
    parts = collectives.reduce_scatter_tensor_coalesced([x, x * 2], "sum", [0, 0], group)
    permuted = collectives.permute_tensor(x, [*range(1, size), 0], group)
    found = {"chain": chain(x, size), "permuted": permuted}
    for name, tensors in (("many", many), ("rows", rows), ("parts", parts)):
        found |= {f"{name} {i}": torch.as_tensor(t).clone() for i, t in enumerate(tensors)}
    return found


def compiled(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Generated C++ around the collectives; the second call reuses it."""
    x = torch.arange(12.0).view(4, 3) + rank
    program = torch.compile(chain, fullgraph=True)
    first, second = program(x, size), program(x + 1, size)
    assert torch.equal(first, chain(x, size))
    return {"first": first, "second": second}


def differentiated(rank: int, size: int) -> dict[str, torch.Tensor]:
    x = (torch.arange(12.0).view(4, 3) + rank).requires_grad_()

    def loss(t: torch.Tensor) -> torch.Tensor:
        every = collectives.all_gather_tensor_autograd(t * t, 0, world())
        piece = collectives.reduce_scatter_tensor_autograd(every, "sum", 0, world())
        return piece.sum()

    torch.compile(loss, backend="aot_eager")(x).backward()
    assert x.grad is not None
    return {"gradient": x.grad}


@pytest.mark.timeout(240)
def test_functional_collectives_give_what_they_give_on_gloo() -> None:
    same_as_gloo(2, [eager, differentiated, compiled])
