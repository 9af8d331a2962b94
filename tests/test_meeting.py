"""Tests of torch_tent/meeting.py: ranks meet in stores that hold what earlier meetings, complete or
not, have left there."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from torch_tent.meeting import Meeting

PATIENCE = timedelta(seconds=20)


def meeting(store: Any, rank: int, size: int, timeout: timedelta = PATIENCE) -> Meeting:
    return Meeting(store, rank, size, timeout, "some")


def all_meet(stores: list[Any], turn: int, delays: list[float] | None = None) -> None:
    """Every rank in a thread of its own; asserts that all see what was brought to this turn."""
    size = len(stores)
    truth = [f"{rank} of {size} in turn {turn}".encode() for rank in range(size)]

    def joins(rank: int) -> list[bytes]:
        time.sleep(delays[rank] if delays else 0)
        return meeting(stores[rank], rank, size).records(truth[rank])

    with ThreadPoolExecutor(size) as threads:
        assert list(threads.map(joins, range(size))) == [truth] * size


@pytest.fixture(params=["tcp", "file", "hash"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "tcp":
        return dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    if request.param == "file":
        return dist.FileStore(str(tmp_path / "store"), -1)
    return dist.HashStore()


def another(store: Any) -> Any:
    """The store as another process sees it."""
    if isinstance(store, dist.TCPStore):
        return dist.TCPStore("127.0.0.1", store.port, None, False)
    return dist.FileStore(store.path, -1) if isinstance(store, dist.FileStore) else store


def views(store: Any, size: int) -> list[Any]:
    return [dist.PrefixStore("group", another(store)) for _ in range(size)]


def test_ranks_meet_again_in_other_numbers(store: Any) -> None:
    for turn, size in enumerate([2, 3, 2, 2, 4, 1]):
        all_meet(views(store, size), turn)


@pytest.mark.parametrize("late", range(3))
def test_whoever_is_late_is_waited_for(store: Any, late: int) -> None:
    stores = views(store, 3)
    for turn in range(2):  # The second time, there is something old to be found.
        all_meet(stores, turn, [0.2 * (rank == late) for rank in range(3)])


@pytest.mark.parametrize("came", [[0], [1], [0, 1], [1, 2]])
def test_a_meeting_that_was_broken_off_is_forgotten(store: Any, came: list[int]) -> None:
    """As when processes are killed while they wait for the others."""
    before = views(store, 3)
    all_meet(before, 0)
    short = timedelta(seconds=0.3)
    errors = {}

    def joins(rank: int) -> None:
        with pytest.raises(dist.DistStoreError) as found:
            meeting(before[rank], rank, 3, short).records(b"broken off")
        errors[rank] = str(found.value)

    threads = [threading.Thread(target=joins, args=(rank,)) for rank in came]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    absent = [rank for rank in range(3) if rank not in came]
    for rank in came:
        assert f"rank {rank} of process group 'some' waited 0.3 s, but rank" in errors[rank]
        # Without a rank 0 nobody knows who else is there.
        named = absent if 0 in came else [0]
        assert f"rank {', '.join(map(str, named))} did not join it" in errors[rank]
    all_meet(views(store, 3), 1)
    all_meet(views(store, 2), 2)


def test_nobody_waits_longer_than_the_timeout(store: Any) -> None:
    began = time.monotonic()
    with pytest.raises(dist.DistStoreError, match="but rank 0 did not join it"):
        meeting(store, 1, 2, timedelta(seconds=0.3)).records(b"alone")
    assert 0.29 < time.monotonic() - began < 3
