"""Stage: tests. What stays behind of groups: nothing, however often they are made, and whatever
became of the ranks; and what a running group needs of the store that it met over: nothing."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_tent as tent
import torch_tent_autoload
from tests.conftest import shared_names, used_by_others
from tests.groups import member
from tests.processes import Processes, run_processes

COUNT = 100_000
WARM, ROUNDS = 5, 200


def held() -> dict[str, int]:
    """What this process holds of the system. A closed engine lets go of its memory files and of its
    epoll set when it is freed, and Python frees circles late."""
    gc.collect()
    links = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    maps = Path("/proc/self/maps").read_text()
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(links),
        "memory files": maps.count("/memfd:"),
        "names in /dev/shm": maps.count("/dev/shm/"),
    }


def new_names(before: set[str]) -> set[str]:
    """Names in shared memory that came since, and that no living process uses."""
    return {name for name in shared_names() - before if not used_by_others(name)}


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def rounds(rank: int, size: int, folder: str, count: int, close: bool) -> Any:
    """Makes a group, uses it in several ways, destroys it; `close`: and the engine with it."""
    first: dict[str, int] = {}
    said = Said()
    logging.getLogger("asyncio").addHandler(said)
    began = time.monotonic()
    for turn in range(WARM + count):
        with member(rank, size, f"{folder}/meeting{turn // 50}"):
            x = torch.full((COUNT,), float(rank))
            dist.all_reduce(x)
            assert x[0] == sum(range(size))
            group = dist.new_group()
            dist.broadcast(x, turn % size, group=group)
            y = tent.empty((10,))
            if rank == 0:
                dist.send(y.fill_(turn), 1)
            elif rank == 1:
                dist.recv(y, 0)
                assert y[0] == turn
        if close:
            tent.engine().close()
        if turn == WARM - 1:
            first = held()
    last = held()
    assert not said.messages, said.messages  # Coroutines that nobody has waited for.
    return first, last, time.monotonic() - began


@pytest.mark.timeout(650)
@pytest.mark.parametrize("close", [False, True], ids=["groups", "engines"])
def test_two_hundred_rounds_leave_nothing(tmp_path: Path, close: bool) -> None:
    names = shared_names()
    for first, last, took in run_processes(
        rounds, 2, str(tmp_path), ROUNDS, close, timeout=ROUNDS * 3.0
    ):
        print(f"{ROUNDS} rounds in {took:.1f} s: {first} -> {last}")
        for what, number in last.items():
            # A link may just be closing: a leak of each round would be `ROUNDS` of them.
            assert number <= first[what] + 3, f"{what}: {first[what]} -> {number}"
    assert new_names(names) == set()


# ---- ranks that are killed -----------------------------------------------------------------------


def lives_on(rank: int, size: int, folder: str, turns: int) -> tuple[dict[str, int], ...]:
    """Rank 0 outlives one rank after the other, each killed in the middle of a collective."""
    found = []
    for turn in range(turns):
        survivor = rank == 0
        if not survivor and rank != turn + 1:
            continue
        with member(0 if survivor else 1, 2, f"{folder}/meeting{turn}"):
            dist.all_reduce(torch.ones(COUNT))
            if not survivor:
                Path(folder, f"ready{turn}").touch()
            with pytest.raises(RuntimeError, match="rank 1"):
                sum_for_ever()
        found.append(held())
    return tuple(found)


def sum_for_ever() -> None:
    while True:
        dist.all_reduce(torch.ones(COUNT))


def test_killed_ranks_leave_nothing(tmp_path: Path) -> None:
    names, turns = shared_names(), 4
    with Processes(lives_on, 1 + turns, str(tmp_path), turns) as ranks:
        for turn in range(turns):
            deadline = time.monotonic() + 40
            while not (tmp_path / f"ready{turn}").exists():
                assert time.monotonic() < deadline, "the ranks did not meet"
                time.sleep(0.01)
            ranks.send_signal(turn + 1, signal.SIGKILL)
        found = ranks.results(50, lost=set(range(1, 1 + turns)))[0]
    assert len(found) == turns
    for what, number in found[-1].items():
        assert number <= found[0][what] + 2, f"{what}: {[each[what] for each in found]}"
    assert new_names(names) == set()


# ---- the store goes ------------------------------------------------------------------------------


def serve(port_file: str) -> None:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    Path(port_file + ".new").write_text(str(store.port))
    os.rename(port_file + ".new", port_file)
    time.sleep(120)


def without_store(rank: int, size: int, folder: str) -> str:
    """The last process is the store; it is killed while the others exchange data."""
    port_file = Path(folder, "port")
    if rank == size - 1:
        serve(str(port_file))
    deadline = time.monotonic() + 30
    while not port_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    torch.set_num_threads(1)
    torch_tent_autoload.register()
    store = dist.TCPStore("127.0.0.1", int(port_file.read_text()), None, False)
    ranks = size - 1
    patience = timedelta(seconds=20)
    dist.init_process_group("tent", store=store, rank=rank, world_size=ranks, timeout=patience)
    group = dist.new_group(list(range(ranks - 1)))
    Path(folder, f"ready{rank}").touch()
    while True:
        dist.all_reduce(torch.ones(COUNT))
        goes_on = torch.tensor([float(Path(folder, "gone").exists())])
        dist.broadcast(goes_on, 0)
        if goes_on[0]:
            break
    for turn in range(20):  # Also what was never used before, and between new pairs.
        x = torch.full((turn + 1,), float(rank))
        dist.all_reduce(x)
        assert x[0] == sum(range(ranks))
        if rank < ranks - 1:
            dist.all_reduce(x, group=group)
        y = torch.zeros(3)
        swap = [dist.isend(x[:1].repeat(3), (rank + 1) % ranks), dist.irecv(y, (rank - 1) % ranks)]
        for work in swap:
            assert work is not None
            work.wait()
    with pytest.raises((dist.DistError, RuntimeError)) as error:  # It says so, and does not hang.
        dist.new_group()
    dist.destroy_process_group()
    with member(rank, ranks, f"{folder}/again"):
        dist.barrier()
    return str(error.value)


def test_a_group_does_not_need_its_store(tmp_path: Path) -> None:
    ranks = 3
    with Processes(without_store, ranks + 1, str(tmp_path)) as children:
        deadline = time.monotonic() + 40
        while len(list(tmp_path.glob("ready*"))) < ranks:
            assert time.monotonic() < deadline, "the ranks did not meet"
            time.sleep(0.01)
        children.send_signal(ranks, signal.SIGKILL)
        (tmp_path / "gone").touch()
        said = children.results(50, lost={ranks})
    assert all(words for words in said[:ranks])
