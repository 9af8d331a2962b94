"""P1 on one host, where the owner of the destination copies out of the writer's memory: stopped in
the middle of that, and woken up after the write was cancelled, it must not find other bytes there.

The writer fills its memory with STRAY as soon as cancel() has returned; the owner's must hold
what was there before, or what was written, and nothing else.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.pairs import until
from tests.processes import Processes

SIZE, ROUNDS = 32 << 20, 16
BEFORE, WRITTEN, STRAY = 1, 2, 3
STOPPED_S = 0.4  # longer than an answer is waited for
ANSWERED_S = 0.2


def owner(rank: int, size: int, folder: str) -> None:
    engine = tent.Engine()
    segment = engine.register(torch.zeros(SIZE, dtype=torch.uint8), access="read-write")
    Path(folder, "new").write_bytes(segment.ticket())
    os.rename(Path(folder, "new"), Path(folder, "ticket"))
    until(Path(folder, "end").exists, 50)
    engine.close()


def cancelled_write(engine: tent.Engine, source: Any, remote: Any, pid: int, after: float) -> bool:
    """Writes, stops the owner `after` seconds, cancels; whether it took too long to be answered."""
    transfer = engine.write(source.fill_(WRITTEN), remote)
    time.sleep(after)
    os.kill(pid, signal.SIGSTOP)
    wakes = threading.Timer(STOPPED_S, os.kill, (pid, signal.SIGCONT))
    wakes.start()
    began = time.monotonic()
    transfer.cancel()
    took = time.monotonic() - began
    source.fill_(STRAY)
    wakes.join()
    return took > ANSWERED_S


@pytest.mark.parametrize("kind", ["cma", "shm"])
def test_a_copy_that_was_stopped_finds_nothing_else(kind: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    engine = tent.Engine()
    try:
        with Processes(owner, 1, str(tmp_path)) as owners:
            until((tmp_path / "ticket").exists, 40)
            remote: Any = engine.open((tmp_path / "ticket").read_bytes())
            plain = torch.empty(SIZE, dtype=torch.uint8)
            source = plain if kind == "cma" else engine.empty((SIZE,), torch.uint8)
            cut_off = 0
            for _ in range(ROUNDS):
                engine.write(source.fill_(BEFORE), remote).wait(30)
                after = chance.uniform(0, 0.005)
                cut_off += cancelled_write(engine, source, remote, owners.pid(0), after)
                found = engine.read(remote).wait(30)
                assert found is not None
                assert not (found == STRAY).any(), f"{int((found == STRAY).sum())} stray bytes"
            assert cut_off > 0  # else nothing was tried
            (tmp_path / "end").touch()
            owners.results(30)
    finally:
        engine.close()
