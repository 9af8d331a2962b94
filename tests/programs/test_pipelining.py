"""Stage: tests. torch.distributed.pipelining on tent and on gloo: stages that send activations and
gradients to each other, in every kind of schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

from tests.programs.twins import same_as_gloo

PARTS, WIDTH = 4, 16


def layers() -> list[nn.Module]:
    torch.manual_seed(5)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(PARTS)]


def run_pipeline(rank: int, size: int, kind: Any, chunks: int, per_rank: int) -> Any:
    """Two steps over all layers; the gradients of this rank's layers, and the last one's output."""
    every = layers()
    device = torch.device("cpu")
    count = size * per_rank
    each = PARTS // count
    parts = {i: nn.Sequential(*every[i * each : (i + 1) * each]) for i in range(rank, count, size)}
    stages = [PipelineStage(part, i, count, device) for i, part in parts.items()]
    given = stages if per_rank > 1 else stages[0]
    schedule = kind(given, chunks, loss_fn=nn.functional.mse_loss)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(6))
    found = {}
    for step in range(2):
        losses: list[torch.Tensor] = []
        inputs = (x,) if rank == 0 else ()
        wanted = {"target": x * 2, "losses": losses} if rank == (count - 1) % size else {}
        out = schedule.step(*inputs, **wanted)
        if out is not None:
            found[f"output {step}"] = out.detach().clone()
        found |= {f"loss {step} {n}": loss.detach() for n, loss in enumerate(losses)}
    for number, part in parts.items():
        for name, p in part.named_parameters():
            assert p.grad is not None
            found[f"{number} {name}"] = p.grad.clone()
    return found


def gpipe(rank: int, size: int) -> dict[str, torch.Tensor]:
    return run_pipeline(rank, size, ScheduleGPipe, 4, 1)


def one_forward_one_backward(rank: int, size: int) -> dict[str, torch.Tensor]:
    return run_pipeline(rank, size, Schedule1F1B, 4, 1)


def interleaved(rank: int, size: int) -> dict[str, torch.Tensor]:
    return run_pipeline(rank, size, ScheduleInterleaved1F1B, 4, 2)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("size", "programs"), [(2, [gpipe, one_forward_one_backward, interleaved]), (4, [gpipe])]
)
def test_pipelines_compute_what_they_do_on_gloo(
    size: int, programs: list[Callable[..., Any]]
) -> None:
    """Nothing is summed across ranks, so all bits are the same."""
    found = same_as_gloo(size, programs)
    assert any(key.startswith("loss") for key in found[size - 1]["gpipe"])
    assert not any(key.startswith("loss") for key in found[0]["gpipe"])
