"""Tests of `tests.processes`: results, failures, time limits, and that no child survives."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes import ChildError, Processes, run_processes


def add(rank: int, nprocs: int, amount: int) -> tuple[int, int]:
    return rank + amount, nprocs


def fail_on_one(rank: int, nprocs: int) -> None:
    if rank == 1:
        raise ValueError("the reason of rank 1")


def sleep_long(rank: int, nprocs: int, seconds: float) -> int:
    time.sleep(seconds)
    return rank


def die_on_one(rank: int, nprocs: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def environment_and_torch(rank: int, nprocs: int) -> tuple[str | None, bool]:
    return os.environ.get("GREETING"), "torch" in sys.modules


@pytest.mark.parametrize("fresh", [False, True])
def test_results_come_by_rank(fresh: bool) -> None:
    assert run_processes(add, 3, 10, fresh=fresh) == [(10, 3), (11, 3), (12, 3)]


def test_a_failure_brings_the_traceback_of_the_child() -> None:
    with pytest.raises(ChildError, match=r"rank 1: (?s:.*)fail_on_one(?s:.*)the reason of rank 1"):
        run_processes(fail_on_one, 2)


def test_a_child_that_dies_is_named_with_its_signal() -> None:
    with pytest.raises(ChildError, match=r"rank 1: it died before it returned: killed by SIGKILL"):
        run_processes(die_on_one, 2)


def test_the_time_limit_is_hard_and_says_where_the_child_was() -> None:
    began = time.monotonic()
    with Processes(sleep_long, 2, 600.0) as children:
        pids = [children.pid(rank) for rank in range(2)]
        with pytest.raises(ChildError, match=r"rank 0: still ran after 1 s(?s:.*)in sleep_long"):
            children.results(timeout=1.0)
    assert time.monotonic() - began < 20
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_lost_rank_is_not_waited_for() -> None:
    with Processes(sleep_long, 2, 0.5) as children:
        children.send_signal(1, signal.SIGSTOP)
        assert children.results(timeout=20.0, lost={1}) == [0, None]


def test_the_environment_is_added_and_torch_is_there() -> None:
    results = run_processes(environment_and_torch, 1, env={"GREETING": "hello"})
    assert results == [("hello", True)]
