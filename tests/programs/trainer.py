"""Stage: tests. A training script as torchrun starts it: it goes on from its checkpoint, with
however many workers there are, and says in a folder how far it is.

Run by test_elastic.py, each worker a process: `python -m tests.programs.trainer FOLDER STEPS`. It
trains until the folder holds `enough`, and at least STEPS. A file `kill-RANK-STEP` in it kills that
worker once, in the backward pass of that step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torch_tent_autoload
from tests.programs.twins import model

ROWS = 12  # Of each step's data, divided among the workers.
PAUSE_S = 0.02


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(ROWS, n, generator=generator) for n in (20, 5))
    return x, y


class Trainer:
    def __init__(self, folder: Path, rank: int, size: int) -> None:
        self.folder, self.rank, self.size = folder, rank, size
        self.step = 0
        plain = model()
        self.module = DistributedDataParallel(plain, bucket_cap_mb=0.01)
        self.optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
        if (folder / "checkpoint").exists():
            self.load()

    def load(self) -> None:
        state: Any = torch.load(self.folder / "checkpoint", weights_only=True)
        self.step = state["step"]
        self.module.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        state = {
            "step": self.step,
            "module": self.module.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, self.folder / "checkpoint.new")
        os.rename(self.folder / "checkpoint.new", self.folder / "checkpoint")

    def train(self) -> None:
        x, y = (whole.chunk(self.size)[self.rank] for whole in data(self.step))
        loss = nn.functional.mse_loss(self.module(x), y)
        self.maybe_die(loss)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def maybe_die(self, loss: torch.Tensor) -> None:
        order = self.folder / f"kill-{self.rank}-{self.step}"
        if order.exists():
            order.unlink()
            first = next(self.module.parameters())  # The last one to get its gradient.
            first.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))

    def is_enough(self, steps: int) -> bool:
        enough = torch.tensor([self.step >= steps and (self.folder / "enough").exists()])
        dist.broadcast(enough, 0)
        return bool(enough)


def main(folder: Path, steps: int) -> None:
    torch_tent_autoload.register()
    dist.init_process_group("tent", timeout=timedelta(seconds=60))
    trainer = Trainer(folder, dist.get_rank(), dist.get_world_size())
    progress = folder / f"progress-{os.getpid()}"
    try:
        while not trainer.is_enough(steps):
            trainer.train()
            if trainer.rank == 0:
                if trainer.step % 2 == 0:  # Some steps are done twice, after a restart.
                    trainer.save()
                with progress.open("a") as file:
                    file.write(f"{trainer.size} {trainer.step}\n")
            time.sleep(PAUSE_S)
    except dist.DistNetworkError as error:
        (folder / f"error-{os.getpid()}").write_text(str(error))
        raise
    if trainer.rank == 0:
        trainer.save()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
