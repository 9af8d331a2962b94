"""Stage: tests. Ranks that die, stop, come late or give up: the others get an error in time that
names them, and can go on in a new group."""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.groups import member, run_group
from tests.processes import Processes, run_processes

# The promise for one host is 1 s; the machine that runs the tests may have much else to do.
NOTICED_S = 3.0
LATE_S = 1.0  # after a timeout of 2 s, on a busy machine
READY_S = 30.0


def endlessly(rank: int, size: int, kind: str, count: int, lost: int) -> Callable[[], Any]:
    """One round of a collective, or of messages with one rank, to be called again and again."""
    x = torch.ones(count)
    many = [torch.ones(count) for _ in range(size)]
    flat = torch.ones(count * size)
    rounds: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(x.fill_(1)),
        "broadcast": lambda: dist.broadcast(x, 0),
        "reduce": lambda: dist.reduce(x.fill_(1), 0),
        "all_gather": lambda: dist.all_gather(many, x),
        "gather": lambda: dist.gather(x, many if rank == 0 else None, 0),
        "scatter": lambda: dist.scatter(x, many if rank == 0 else None, 0),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(x, flat.fill_(1)),
        "all_to_all": lambda: dist.all_to_all_single(flat, flat.clone()),
        "barrier": dist.barrier,
        "send": lambda: dist.send(x, lost),
        "recv": lambda: dist.recv(x, lost),
    }
    if kind in MESSAGES and rank == lost:
        opposite = dist.recv if kind == "send" else dist.send
        return lambda: [opposite(x, other) for other in range(size) if other != lost]
    return rounds[kind]


def until_it_fails(
    rank: int, size: int, folder: str, kind: str, count: int, lost: int, timeout: float
) -> tuple[float, str, float]:
    """When the collective failed and with which words; then a new group of the others works."""
    with member(rank, size, f"{folder}/first", timeout=timedelta(seconds=timeout)):
        one_round = endlessly(rank, size, kind, count, lost)
        dist.barrier()
        Path(folder, f"ready{rank}").touch()
        try:
            while True:
                one_round()
                # Who only sends or only receives never waits for the others by itself.
                if kind in {"broadcast", "reduce", "gather", "scatter"}:
                    dist.barrier()
        except RuntimeError as error:
            failed, words = time.monotonic(), f"{type(error).__name__}: {error}"
    survivors = [r for r in range(size) if r != lost]
    with member(survivors.index(rank), size - 1, f"{folder}/second"):
        x = torch.ones(count)
        dist.all_reduce(x)
    return failed, words, x.sum().item() / max(count, 1)


def lose(
    number: int, folder: Path, kind: str, count: int, delay: float, timeout: float, **env: str
) -> Any:
    """Lets three ranks work, takes one away with a signal; its time, and what the others say."""
    size, lost = 3, random.randrange(3)
    arguments = (str(folder), kind, count, lost, timeout)
    with Processes(until_it_fails, size, *arguments, env=env) as ranks:
        deadline = time.monotonic() + READY_S
        while len(list(folder.glob("ready*"))) < size:
            assert time.monotonic() < deadline, "the ranks did not meet"
            time.sleep(0.01)
        time.sleep(delay)
        gone = time.monotonic()
        ranks.send_signal(lost, number)
        results = ranks.results(READY_S, lost={lost})
    said = [result for result in results if result is not None]
    after = ", ".join(f"{1000 * (failed - gone):.0f} ms" for failed, _, _ in said)
    print(f"{kind} of {count} elements: the others knew after {after}")
    return lost, gone, said


KINDS = [
    "all_reduce", "broadcast", "reduce", "all_gather", "gather", "scatter", "reduce_scatter",
    "all_to_all", "barrier",
]  # fmt: skip
MESSAGES = ["send", "recv"]


@pytest.mark.parametrize("kind", [*KINDS, *MESSAGES])
def test_a_killed_rank_is_named_at_once(kind: str, tmp_path: Path, seed: int) -> None:
    random.seed(seed)
    count = random.choice([1, 5000, 300_000])
    delay = random.uniform(0, 0.1)
    lost, gone, said = lose(signal.SIGKILL, tmp_path, kind, count, delay, 25.0)
    assert len(said) == 2
    for failed, words, total in said:
        assert words.startswith("DistNetworkError: "), words
        assert re.search(rf"rank {lost} is lost|(to|from) rank {lost}\b", words), words
        assert failed - gone < NOTICED_S, words
        assert total == 2


@pytest.mark.parametrize("kind", [*KINDS, *MESSAGES])
def test_a_stopped_rank_is_named_after_the_timeout(kind: str, tmp_path: Path, seed: int) -> None:
    random.seed(seed)
    count = random.choice([1, 5000, 300_000])
    lost, gone, said = lose(signal.SIGSTOP, tmp_path, kind, count, 0.05, 2.0)
    assert len(said) == 2
    for failed, words, total in said:
        assert words.startswith("DistNetworkError: "), words
        if kind in MESSAGES:
            assert re.search(rf"(to|from) rank {lost}: .*timeout passed", words), words
        else:  # By all: also by those that waited for a rank that is well.
            assert "Timed out after 2." in words, words
            assert words.endswith(f"; no answer from rank {lost}"), words
        late = failed - gone - 2.0  # All were asked before, so nobody waits for answers.
        assert -0.1 <= late < LATE_S, words
        assert total == 2


@pytest.mark.parametrize("kind", [*KINDS, *MESSAGES])
def test_a_rank_that_keeps_silent_is_lost_and_named_by_all(
    kind: str, tmp_path: Path, seed: int
) -> None:
    random.seed(seed)
    count = random.choice([1, 5000, 300_000])
    lost, gone, said = lose(
        signal.SIGSTOP, tmp_path, kind, count, 0.05, 40.0, TENT_PEER_TIMEOUT_S="2"
    )
    assert len(said) == 2
    for failed, words, total in said:
        assert words.startswith("DistNetworkError: "), words
        assert re.search(rf"rank {lost} is lost|(to|from) rank {lost}\b", words), words
        assert 1.9 <= failed - gone < 2 + NOTICED_S, words
        assert total == 2


# ---- ranks that come late, or not at all ---------------------------------------------------------


def missing_rank(rank: int, size: int) -> None:
    group = dist.new_group(timeout=timedelta(seconds=0.5))
    if rank != 1:
        began = time.monotonic()
        words = r"Timed out after 0\.5.*waiting for rank.*; the engines of all ranks answer"
        with pytest.raises(dist.DistNetworkError, match=words):
            dist.all_reduce(torch.ones(3), group=group)
        assert 0.4 < time.monotonic() - began < 0.5 + NOTICED_S
    dist.barrier()
    if rank == 1:
        with pytest.raises(dist.DistNetworkError, match="Timed out"):
            dist.all_reduce(torch.ones(3), group=group)
    dist.barrier()
    x = torch.ones(3)  # The group can be used again: numbers tell the calls apart.
    dist.all_reduce(x, group=group)
    assert x[0] == size


def test_a_rank_that_does_not_come_is_named() -> None:
    run_group(missing_rank, 3)


def bounded_wait(rank: int, size: int) -> None:
    x = torch.zeros(3)
    if rank == 0:
        work = dist.irecv(x, 1)
        assert work is not None
        began = time.monotonic()
        with pytest.raises(dist.DistNetworkError, match="has not ended within 200 ms"):
            work.wait(timedelta(seconds=0.2))
        assert 0.2 <= time.monotonic() - began < 0.2 + NOTICED_S
        assert not work.is_completed()
        dist.send(x, 1)  # Now it may come.
        work.wait()
        assert x.tolist() == [5.0] * 3
    else:
        dist.recv(x, 0)
        dist.send(x + 5, 0)


def test_a_wait_that_times_out_leaves_the_work_as_it_is() -> None:
    run_group(bounded_wait, 2)


def give_up(rank: int, size: int) -> None:
    group: Any = dist.new_group()
    other: Any = dist.new_group()
    backend = group._get_backend(torch.device("cpu"))
    if rank == 0:
        message = backend.recv([torch.zeros(3)], 1, 0)
        sums = [backend.allreduce([torch.ones(n)], dist.AllreduceOptions()) for n in (3, 1 << 20)]
        threading.Timer(0.2, backend.abort).start()
        began = time.monotonic()
        for work in (*sums, message):
            with pytest.raises(dist.DistBackendError, match=r"abort\(\) was called"):
                work.wait()
        assert time.monotonic() - began < 0.2 + NOTICED_S
        with pytest.raises(dist.DistBackendError, match="abort"):
            backend.allreduce([torch.ones(3)], dist.AllreduceOptions()).wait()
    x = torch.ones(3)
    dist.all_reduce(x, group=other)  # Other groups do not notice.
    assert x[0] == 2


def test_abort_ends_everything_at_once() -> None:
    run_group(give_up, 2)


def monitored(rank: int, size: int, absent: list[int]) -> None:
    dist.monitored_barrier()
    dist.monitored_barrier(wait_all_ranks=True)
    for all_ranks in (False, True):
        named = absent if all_ranks else absent[:1]
        timeout = timedelta(seconds=0.5)
        # Or who is slow to come out of the last one comes late to this one. Not by a collective:
        # the absent have made fewer calls, and calls are numbered.
        store = dist.distributed_c10d._get_default_store()
        store.set(f"round {all_ranks} {rank}", "here")
        store.wait([f"round {all_ranks} {other}" for other in range(size)])
        if rank == 0:
            words = f"Ranks? {', '.join(map(str, named))} failed to pass monitoredBarrier in 500 ms"
            with pytest.raises(RuntimeError, match=words):
                dist.monitored_barrier(timeout=timeout, wait_all_ranks=all_ranks)
        elif rank not in absent:
            words = f"Rank {rank} successfully reached monitoredBarrier.*rank 0"
            with pytest.raises(RuntimeError, match=words):
                dist.monitored_barrier(timeout=timeout, wait_all_ranks=all_ranks)


def in_gloo(rank: int, size: int) -> None:
    dist.monitored_barrier()
    group: Any = dist.new_group(backend="gloo")
    dist.monitored_barrier(group)
    x = torch.ones(3)
    dist.all_reduce(x, group=group)
    assert x[0] == size


@pytest.mark.parametrize("absent", [[1], [2, 3]])
def test_the_monitored_barrier_names_the_missing(absent: list[int]) -> None:
    run_group(monitored, 4, absent)


def test_the_monitored_barrier_of_other_backends_still_works() -> None:
    run_group(in_gloo, 2)


def joins_alone(rank: int, size: int, meeting: str) -> str:
    began = time.monotonic()
    words = r"waited 1 s, but rank 1, 2 did not join it"
    alone = member(0, 3, meeting, timeout=timedelta(seconds=1))
    with pytest.raises(dist.DistStoreError, match=words), alone:
        pytest.fail("it met somebody")
    assert time.monotonic() - began < 1 + NOTICED_S


def test_who_waits_in_vain_for_others_to_join_is_told_for_whom(tmp_path: Path) -> None:
    run_processes(joins_alone, 1, str(tmp_path / "meeting"))
