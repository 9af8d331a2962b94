"""Stage: tests. Runs the same programs on "tent" and on "gloo" and compares what they compute.

Called by the tests of programs, on their thread. A program is `program(rank, size)`, which returns
tensors by name. Many run in one group: what takes long is to start processes and to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tests.groups import run_group

Tensors = Mapping[str, torch.Tensor]
Program = Callable[[int, int], Tensors]
LIMIT_S = 100.0


def model() -> nn.Module:
    """Parameters that fill several of DDP's buckets where those are small."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(20, 330), nn.GELU(), nn.Linear(330, 64), nn.LayerNorm(64), nn.Linear(64, 5)
    )


def train(module: nn.Module, rank: int, rounds: int = 4) -> None:
    """A few steps on data that differs from rank to rank."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(rounds):
        x, y = (torch.randn(16, n, generator=generator) for n in (20, 5))
        nn.functional.mse_loss(module(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters, whole."""
    found = {}
    for name, parameter in module.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found[name] = whole.detach().clone()
    return found


def all_of(rank: int, size: int, programs: Sequence[Program]) -> dict[str, Tensors]:
    return {program.__name__: program(rank, size) for program in programs}


def same_as_gloo(
    size: int, programs: Sequence[Program], tolerance: float = 0.0, **options: Any
) -> list[dict[str, Tensors]]:
    """Asserts that each rank's results are those of gloo; returns them by rank and program.

    Bit by bit, unless a relative and absolute `tolerance` is given for sums of more than two
    operands, whose order differs.
    """
    ours = run_group(all_of, size, programs, timeout=LIMIT_S, **options)
    theirs = run_group(all_of, size, programs, timeout=LIMIT_S, **options, backend="gloo")
    for rank in range(size):
        for name, truth in theirs[rank].items():
            made = ours[rank][name]
            assert list(made) == list(truth) != [], name
            for key, expected in truth.items():
                where = f"{name}: {key} on rank {rank}"
                assert bool(made[key].isfinite().all()), where
                if tolerance:
                    close = torch.allclose(made[key], expected, tolerance, tolerance)
                    assert close, f"{where}: {(made[key] - expected).abs().max()}"
                else:
                    assert torch.equal(made[key], expected), where
    return ours
