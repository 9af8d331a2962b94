"""Stage: benchmarks, in a player. The gloo backend of torch.distributed."""

from __future__ import annotations

import datetime
from typing import Any

import torch
import torch.distributed as dist

from .base import Arm
from .distributed import DistributedOps


class GlooArm(DistributedOps, Arm):
    """torch.distributed over gloo, met through a file."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{seat.folder}/store",
            rank=seat.rank,
            world_size=seat.world,
            timeout=datetime.timedelta(seconds=seat.options.get("timeout_s", 60)),
        )

    def version(self) -> str:
        """As part of torch."""
        return f"gloo of torch {torch.__version__}"


ARM = GlooArm
