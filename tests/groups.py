"""Stage: tests. Process groups of several processes: starts them, meets over a file, destroys them.

Called by tests, on their thread; what the children run is on theirs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import torch_tent_autoload
from tests.processes import run_processes

PATIENCE = timedelta(seconds=30)


def run_group(
    function: Callable[..., Any], size: int, *args: Any, timeout: float = 50.0, **options: Any
) -> list[Any]:
    """Runs `function(rank, size, *args)` in a default group of `size` ranks; results by rank."""
    with tempfile.TemporaryDirectory(prefix="tent-test-") as folder:
        meeting = str(Path(folder) / "meeting")
        call = (function, meeting, options, args)
        return run_processes(_member, size, *call, timeout=timeout)


def all_wrong(rank: int, size: int, *checks: Callable[[int, int], Iterator[str]]) -> list[str]:
    """What several checks, one after the other in one group, find wrong: for speed."""
    return [wrong for check in checks for wrong in check(rank, size)]


def _member(
    rank: int,
    size: int,
    function: Callable[..., Any],
    meeting: str,
    options: dict[str, Any],
    args: tuple[Any, ...],
) -> Any:
    with member(rank, size, meeting, **options):
        return function(rank, size, *args)


@contextmanager
def member(
    rank: int, size: int, meeting: str, backend: str = "tent", timeout: timedelta = PATIENCE
) -> Iterator[None]:
    """This process is a rank of the default group while the block runs."""
    torch.set_num_threads(1)
    torch_tent_autoload.register()
    method = f"file://{meeting}"
    dist.init_process_group(
        backend, init_method=method, rank=rank, world_size=size, timeout=timeout
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
