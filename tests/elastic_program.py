"""Stage: tests. A training program as torchrun starts it: it resumes from its last checkpoint, and
its result does not depend on the number of ranks. Run by tests/test_elastic.py, in processes of
its own; arguments: FOLDER STEPS BACKEND.

A file FOLDER/kill-STEP makes rank 1 kill itself in that step, once; FOLDER/wait-STEP makes all wait
there until there are as many ranks as the file says.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torch_tent_autoload

ROWS = 12  # Of all ranks together; 1, 2 and 3 ranks get equal parts.
LIMIT_S = 100


def train(folder: Path, steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 2)
    model = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rank, size = dist.get_rank(), dist.get_world_size()
    saved, first = folder / "checkpoint", 0
    if saved.exists():
        state = torch.load(saved)
        module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"] + 1
    note(folder, f"start {first} with {size}")
    for step in range(first, steps):
        wait_for_ranks(folder / f"wait-{step}", size)
        x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(step)).chunk(size)[rank]
        model(x).square().mean().backward()
        kill = folder / f"kill-{step}"
        if rank == 1 and kill.exists():
            kill.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            state = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step}, folder / "checkpoint.new")
            os.replace(folder / "checkpoint.new", saved)
        dist.barrier()
    return module


def note(folder: Path, what: str) -> None:
    """Rank 0 writes down how often it began, and with how many."""
    if dist.get_rank() == 0:
        with open(folder / "notes", "a") as notes:
            print(what, file=notes)


def wait_for_ranks(wish: Path, size: int) -> None:
    """Until this world is of the wished size: another one has to be made, by torchrun."""
    deadline = time.monotonic() + LIMIT_S
    while wish.exists() and int(wish.read_text() or size) != size:
        assert time.monotonic() < deadline, "torchrun did not make a new world"
        time.sleep(0.05)


def main(folder: Path, steps: int, backend: str) -> None:
    torch.set_num_threads(1)
    torch_tent_autoload.register()
    dist.init_process_group(backend)
    module = train(folder, steps)
    if dist.get_rank() == 0:
        torch.save(module.state_dict(), folder / "result")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
