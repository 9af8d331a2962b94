"""Stage: tests. torch.distributed.checkpoint on tent: saved by some number of ranks, loaded by
another, together and in the background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.groups import run_group
from tests.programs.twins import model, parameters, train


def trainer(size: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    module = model()
    fully_shard(module, mesh=init_device_mesh("cpu", (size,)))
    return module, torch.optim.AdamW(module.parameters(), lr=0.01)


def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same data on all ranks, so that their number does not matter."""
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(8))
    module(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def state_of(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    parts = get_state_dict(module, optimizer)
    return {"model": parts[0], "optimizer": parts[1]}


def save(rank: int, size: int, folder: str, in_background: bool) -> dict[str, torch.Tensor]:
    module, optimizer = trainer(size)
    step(module, optimizer)
    if in_background:
        # It has threads of its own, which must not meet the collectives of the training.
        group = dist.new_group(backend="tent")
        saved: Any = dcp.async_save(
            state_of(module, optimizer), checkpoint_id=folder, process_group=group
        )
        x = torch.ones(1000)
        for _ in range(50):
            dist.all_reduce(x)
            x /= size
        assert bool((x == 1).all())
        saved.result(60)
    else:
        dcp.save(state_of(module, optimizer), checkpoint_id=folder)
    step(module, optimizer)
    return parameters(module)


def load(rank: int, size: int, folder: str) -> dict[str, torch.Tensor]:
    module, optimizer = trainer(size)
    train(module, rank, 1)  # Something else, that must go.
    state = state_of(module, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    step(module, optimizer)
    return parameters(module)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("in_background", [False, True])
def test_a_checkpoint_goes_on_with_another_number_of_ranks(
    tmp_path: Path, in_background: bool
) -> None:
    folder = str(tmp_path / "saved")
    saved = run_group(save, 2, folder, in_background, timeout=100)
    for size in (3, 1) if in_background else (3,):
        for found in run_group(load, size, folder, timeout=100):
            for name, expected in saved[0].items():
                torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
