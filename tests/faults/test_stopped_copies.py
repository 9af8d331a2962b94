"""P1 on one host, where the owner of the destination copies out of the writer's memory: stopped in
the middle of that, and woken up after the transfer was cancelled, it must not take other bytes.

The writer fills its memory with STRAY as soon as cancel() has returned. After a write, the owner's
must hold what was there before, or what was written, and nothing else: so cancel() waits for the
copy. After a message it need not wait: a receive that was given something else fails.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_tent as tent
from tests.groups import member
from tests.pairs import until
from tests.processes import Processes, run_processes

SIZE, ROUNDS = 32 << 20, 16
LARGE, CLOSINGS = 256 << 20, 5  # more than goes through before close() stops it
BEFORE, WRITTEN, STRAY = 1, 2, 3
STOPPED_S = 0.4  # longer than an answer is waited for
ANSWERED_S = 0.2
SOON_S = 3.0  # peer_timeout_s is 10


def owner(rank: int, size: int, folder: str, nbytes: int) -> None:
    engine = tent.Engine()
    segment = engine.register(torch.zeros(nbytes, dtype=torch.uint8), access="read-write")
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
        with Processes(owner, 1, str(tmp_path), SIZE) as owners:
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


def test_a_closed_engine_leaves_no_copy_behind(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    source = torch.empty(LARGE, dtype=torch.uint8)
    with Processes(owner, 1, str(tmp_path), LARGE) as owners, closing(tent.Engine()) as witness:
        until((tmp_path / "ticket").exists, 40)
        ticket = (tmp_path / "ticket").read_bytes()
        seen: Any = witness.open(ticket)
        gone_on = 0
        for _ in range(CLOSINGS):
            with closing(tent.Engine()) as engine:
                remote: Any = engine.open(ticket)
                engine.write(source.fill_(BEFORE), remote).wait(30)
                transfer = engine.write(source.fill_(WRITTEN), remote)
                time.sleep(chance.uniform(0, 0.005))
            source.fill_(STRAY)
            gone_on += transfer.exception(0) is None
            found = witness.read(seen).wait(30)
            assert found is not None
            assert not (found == STRAY).any(), f"{int((found == STRAY).sum())} stray bytes"
        assert gone_on < CLOSINGS  # else nothing was tried
        (tmp_path / "end").touch()
        owners.results(30)


def cancelled_messages(rank: int, size: int, folder: str, kind: str, seed: int) -> list[Any]:
    """Rank 0 sends, stops rank 1, cancels, and only then lets it go on. How long each cancel took;
    on rank 1 what each receive ended with, and whether there were other bytes."""
    chance = random.Random(seed)
    found: list[Any] = []
    with member(rank, size, f"{folder}/meeting"):
        plain = torch.empty(SIZE, dtype=torch.uint8)
        x = plain if kind == "cma" or rank == 1 else tent.empty((SIZE,), torch.uint8)
        pids: list[Any] = [None, None]
        dist.all_gather_object(pids, os.getpid())
        over = torch.zeros(1)
        for _ in range(ROUNDS):
            received = tent.recv(x.fill_(BEFORE), src=0) if rank == 1 else None
            dist.barrier()
            if received is None:
                transfer = tent.send(x.fill_(WRITTEN), dst=1)
                time.sleep(chance.uniform(0, 0.005))
                os.kill(pids[1], signal.SIGSTOP)
                began = time.monotonic()
                transfer.cancel()
                found.append(time.monotonic() - began)
                x.fill_(STRAY)
                os.kill(pids[1], signal.SIGCONT)
                tent.send(over, dst=1, tag=1).wait(20)
            else:
                tent.recv(over, src=0, tag=1).wait(20)
                received.cancel()  # where it was stopped before it heard of the message
                error = received.exception(20)
                found.append((error is None, bool((x == STRAY).any())))
        dist.barrier()
    return found


@pytest.mark.parametrize("kind", ["cma", "shm"])
def test_a_message_ends_although_the_copy_of_it_was_stopped(
    kind: str, seed: int, tmp_path: Path
) -> None:
    took, received = run_processes(cancelled_messages, 2, str(tmp_path), kind, seed, timeout=50.0)
    assert max(took) > ANSWERED_S  # else nothing was tried
    assert max(took) < SOON_S
    assert (True, True) not in received, "a receive succeeded with other bytes"
    print(f"{received.count((False, True))} receives failed with other bytes in their memory")
