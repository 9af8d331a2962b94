"""Stage: tests. Ranks that stop for a while and go on: within the timeout nobody notices, and after
one the group can be used again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.groups import member
from tests.processes import Processes

COUNT = 100_000
READY_S = 40.0


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not true():
        assert time.monotonic() < deadline, "the ranks did not come so far"
        time.sleep(0.01)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def goes_on(rank: int, size: int, folder: str) -> int:
    """Sums, until the others have been told that it is enough."""
    turns = 0
    with member(rank, size, f"{folder}/meeting"):
        enough = torch.zeros(1)
        while enough[0] == 0:
            x = torch.full((COUNT,), float(rank + turns))
            dist.all_reduce(x)
            assert bool((x == sum(r + turns for r in range(size))).all())
            enough[0] = float(rank == 0 and Path(folder, "enough").exists())
            dist.broadcast(enough, 0)
            Path(folder, f"ready{rank}").touch()
            turns += 1
    return turns


def test_a_pause_is_not_noticed(tmp_path: Path) -> None:
    with Processes(goes_on, 3, str(tmp_path)) as ranks:
        wait_until(lambda: len(list(tmp_path.glob("ready*"))) == 3)
        for paused in range(3):
            ranks.send_signal(paused, signal.SIGSTOP)
            time.sleep(1.0)
            ranks.send_signal(paused, signal.SIGCONT)
            time.sleep(0.1)
        (tmp_path / "enough").touch()
        turns = ranks.results(READY_S)
    assert turns[0] == turns[1] == turns[2] > 3


def stops_itself(rank: int, size: int, folder: str) -> str:
    """Rank 1 stops before one collective for longer than the others wait for it."""
    with member(rank, size, f"{folder}/meeting"):
        group = dist.new_group(timeout=timedelta(seconds=1.5))
        x = torch.ones(COUNT)
        dist.all_reduce(x, group=group)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(dist.DistNetworkError, match="Timed out") as found:
            dist.all_reduce(x.fill_(1), group=group)
        Path(folder, f"failed{rank}").touch()
        dist.barrier()
        for turn in range(5):
            dist.all_reduce(x.fill_(turn), group=group)
            assert bool((x == turn * size).all())
    return str(found.value)


def test_a_group_can_be_used_again_after_a_timeout(tmp_path: Path) -> None:
    with Processes(stops_itself, 3, str(tmp_path)) as ranks:
        wait_until(lambda: is_stopped(ranks.pid(1)))
        wait_until(lambda: all((tmp_path / f"failed{r}").exists() for r in (0, 2)))
        ranks.send_signal(1, signal.SIGCONT)
        said = ranks.results(READY_S)
    assert all(said[rank].endswith("; no answer from rank 1") for rank in (0, 2)), said


def waits_while_stopped(rank: int, size: int, folder: str) -> None:
    """Rank 1 waits for a message, and is stopped for longer than the peer may be silent."""
    with member(rank, size, f"{folder}/meeting"):
        x = torch.zeros(3)
        dist.barrier()
        if rank == 1:
            work = dist.irecv(x, 0)
            assert work is not None
            os.kill(os.getpid(), signal.SIGSTOP)
            work.wait()
            assert x.tolist() == [1, 1, 1]
        else:
            wait_until(Path(folder, "woken").exists)
            time.sleep(0.2)  # rank 1 shall find that nothing came while it was stopped
            dist.send(x.fill_(1), 1)
        dist.barrier()


def test_time_in_which_we_were_stopped_is_not_the_peers_silence(tmp_path: Path) -> None:
    env = {"TENT_PEER_TIMEOUT_S": "1.5"}
    with Processes(waits_while_stopped, 2, str(tmp_path), env=env) as ranks:
        wait_until(lambda: is_stopped(ranks.pid(1)))
        time.sleep(2.5)
        (tmp_path / "woken").touch()
        ranks.send_signal(1, signal.SIGCONT)
        ranks.results(READY_S)
