"""Stage: tests. Many process groups at once: 64 of four ranks each, with members in common, and
threads that each work in a group of their own, with every kind of collective and with messages."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.groups import PATIENCE, run_group

SIZE, GROUPS, MEMBERS = 6, 64, 4
COUNTS = [3, 5000, 40_000]


class Within:
    """The operations of one group, each with what it must give; ranks are places in the group."""

    def __init__(self, group: Any, members: list[int], key: int) -> None:
        self.group, self.members, self.key = group, members, key
        self.place = members.index(dist.get_rank())

    def part(self, place: int, count: int) -> torch.Tensor:
        return torch.arange(count, dtype=torch.float64).remainder(7) + self.key + 100 * place

    def all_reduce(self, count: int) -> None:
        x = self.part(self.place, count)
        dist.all_reduce(x, group=self.group)
        assert torch.equal(x, sum(self.every(count), torch.zeros_like(x)))

    def every(self, count: int) -> list[torch.Tensor]:
        return [self.part(place, count) for place in range(len(self.members))]

    def broadcast(self, count: int) -> None:
        root = count % len(self.members)
        x = self.part(self.place, count)
        dist.broadcast(x, self.members[root], group=self.group)
        assert torch.equal(x, self.part(root, count))

    def all_gather(self, count: int) -> None:
        out = torch.empty(len(self.members) * count, dtype=torch.float64)
        dist.all_gather_into_tensor(out, self.part(self.place, count), group=self.group)
        assert torch.equal(out, torch.cat(self.every(count)))

    def reduce_scatter(self, count: int) -> None:
        out = torch.empty(count, dtype=torch.float64)
        whole = self.part(self.place, len(self.members) * count)
        dist.reduce_scatter_tensor(out, whole, group=self.group)
        total = sum(self.every(len(whole)), torch.zeros_like(whole))
        assert torch.equal(out, total.chunk(len(self.members))[self.place])

    def all_to_all(self, count: int) -> None:
        size = len(self.members)
        out = torch.empty(size * count, dtype=torch.float64)
        dist.all_to_all_single(out, self.part(self.place, size * count), group=self.group)
        pieces = [whole.chunk(size)[self.place] for whole in self.every(size * count)]
        assert torch.equal(out, torch.cat(pieces))

    def ring(self, count: int) -> None:
        size = len(self.members)
        to, source = (self.place + 1) % size, (self.place - 1) % size
        out = torch.empty(count, dtype=torch.float64)
        works = [
            dist.isend(self.part(self.place, count), self.members[to], group=self.group),
            dist.irecv(out, self.members[source], group=self.group),
        ]
        for work in works:
            assert work is not None
            work.wait()
        assert torch.equal(out, self.part(source, count))

    def operations(self) -> list[Callable[[int], None]]:
        return [
            self.all_reduce, self.broadcast, self.all_gather, self.reduce_scatter, self.all_to_all,
            self.ring,
        ]  # fmt: skip


def made_groups(rank: int, members: list[list[int]]) -> list[Within]:
    """All ranks make all groups, in one order; those that this rank is in."""
    groups = [dist.new_group(each, timeout=PATIENCE) for each in members]
    return [
        Within(group, each, key)
        for key, (group, each) in enumerate(zip(groups, members, strict=True))
        if rank in each
    ]


def sixty_four(rank: int, size: int, seed: int) -> int:
    draw = random.Random(seed)
    choices = list(itertools.combinations(range(size), MEMBERS))
    mine = made_groups(rank, [list(draw.choice(choices)) for _ in range(GROUPS)])
    parts = [[within.part(within.place, COUNTS[within.key % 3])] for within in mine]
    works = [
        dist.all_reduce(x, group=within.group, async_op=True)
        for (x,), within in zip(parts, mine, strict=True)
    ]
    for (x,), within, work in reversed(list(zip(parts, mine, works, strict=True))):
        assert work is not None
        work.wait()
        assert torch.equal(x, sum(within.every(len(x)), torch.zeros_like(x)))
    for within in mine:
        operations = within.operations()
        operations[within.key % len(operations)](COUNTS[within.key % 2])
    for within in mine:  # Those that are gone do not disturb the others.
        if within.key % 2 == 0:
            dist.destroy_process_group(within.group)
    for within in mine:
        if within.key % 2 == 1:
            within.all_reduce(3)
    dist.barrier()
    return len(mine)


@pytest.mark.timeout(120)
def test_sixty_four_groups_of_four_ranks(seed: int) -> None:
    assert sum(run_group(sixty_four, SIZE, seed, timeout=100)) == GROUPS * MEMBERS


def in_threads(rank: int, size: int, seed: int) -> list[str]:
    """Each thread has a group, and takes the operations in an order of its own."""
    members = [[0, 1, 2, 3], [0, 1], [1, 2, 3], [0, 3], [0, 1, 2, 3], [0, 1, 2]]
    mine = made_groups(rank, members)
    wrong: list[str] = []

    def work_in(within: Within) -> None:
        draw = random.Random(seed + within.key)
        try:
            for _ in range(40):
                draw.choice(within.operations())(draw.choice(COUNTS))
        except Exception as error:
            wrong.append(f"group {within.key}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work_in, args=(within,)) for within in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.timeout(120)
def test_threads_work_in_different_groups(seed: int) -> None:
    assert run_group(in_threads, 4, seed, timeout=100) == [[]] * 4
