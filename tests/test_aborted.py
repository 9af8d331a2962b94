"""Stage: tests. abort() ends every kind of operation at once, on the rank that calls it and, when
that rank goes, on the others; afterwards the same processes make a new group."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.groups import member, run_group
from tests.processes import run_processes

AFTER_S, SOON_S = 0.1, 2.0  # The promise is "at once"; the machine may have much else to do.
COUNT = 200_000


def operations(rank: int, size: int) -> dict[str, Callable[[], Any]]:
    """Every operation, on a group of which nobody else has called it: none can end by itself."""
    x, flat = torch.ones(COUNT), torch.ones(size * COUNT)
    many = [torch.ones(COUNT) for _ in range(size)]
    other = (rank + 1) % size
    return {
        "all_reduce": lambda group: dist.all_reduce(x, group=group),
        "sparse": lambda group: dist.all_reduce(torch.ones(3).to_sparse(), group=group),
        "broadcast": lambda group: dist.broadcast(x, other, group=group),
        "reduce": lambda group: dist.reduce(x, rank, group=group),
        "all_gather": lambda group: dist.all_gather(many, x, group=group),
        "gather": lambda group: dist.gather(x, many, rank, group=group),
        "scatter": lambda group: dist.scatter(x, None, other, group=group),
        "reduce_scatter": lambda group: dist.reduce_scatter_tensor(x, flat, group=group),
        "all_to_all": lambda group: dist.all_to_all_single(flat, flat.clone(), group=group),
        "barrier": lambda group: dist.barrier(group),
        "monitored_barrier": lambda group: dist.monitored_barrier(group),
        "send": lambda group: dist.send(x, other, group=group),
        "recv": lambda group: dist.recv(x, other, group=group),
        "recv from any": lambda group: dist.recv(x, group=group),
    }


def native(group: Any) -> Any:
    return group._get_backend(torch.device("cpu"))


def aborted_in_each(rank: int, size: int) -> list[tuple[str, float, str]]:
    groups = {kind: dist.new_group() for kind in operations(rank, size)}
    said = []
    if rank == 0:
        for kind, call in operations(rank, size).items():
            group = groups[kind]
            began = time.monotonic()
            threading.Timer(AFTER_S, native(group).abort).start()
            with pytest.raises(RuntimeError) as found:
                call(group)
            said.append((kind, time.monotonic() - began, str(found.value)))
    dist.barrier()
    return said


def test_every_operation_ends_at_once() -> None:
    said = run_group(aborted_in_each, 3)[0]
    assert len(said) == 14
    for kind, took, words in said:
        assert "abort() was called" in words or kind == "monitored_barrier", f"{kind}: {words}"
        assert AFTER_S <= took < AFTER_S + SOON_S, f"{kind} took {took:.2f} s"


def in_the_middle(rank: int, size: int, folder: str) -> None:
    """All ranks are in a collective when one of them aborts."""
    for turn in range(3):
        with member(rank, size, f"{folder}/first{turn}"):
            x = torch.ones(8 * COUNT)
            dist.barrier()
            if rank == turn % size:
                works = [dist.all_reduce(x.clone(), async_op=True) for _ in range(50)]
                began = time.monotonic()
                native(dist.group.WORLD).abort()
                for work in works:
                    assert work is not None
                    try:
                        work.wait()  # Some may have ended before.
                    except dist.DistBackendError as error:
                        assert "abort" in str(error)  # noqa: PT017
                assert time.monotonic() - began < SOON_S
            else:
                began = time.monotonic()
                with pytest.raises(RuntimeError, match=f"rank {turn % size} has aborted"):
                    many_sums(x)
                assert time.monotonic() - began < 10 * SOON_S
        with member(rank, size, f"{folder}/second{turn}"):
            y = torch.ones(3)
            dist.all_reduce(y)
            assert y[0] == size


def many_sums(x: torch.Tensor) -> None:
    for _ in range(50):
        dist.all_reduce(x)


def test_all_ranks_come_back_after_an_abort(tmp_path: Any) -> None:
    run_processes(in_the_middle, 3, str(tmp_path), timeout=50)


# ---- messages ------------------------------------------------------------------------------------


def messages_with_the_aborter(rank: int, size: int, before: bool) -> list[str]:
    """Rank 1 aborts while ranks 0 and 2 wait for it and for each other. `before`: the group has
    had a collective, so that all have links."""
    group: Any = dist.new_group()
    if before:
        dist.barrier(group)
    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["ready 0", "ready 2"])
        native(group).abort()
        store.wait(["done 0", "done 2"])
        return []
    x, y = torch.zeros(3), torch.zeros(COUNT)
    other = 2 - rank
    waiting = {
        "recv": dist.irecv(x, 1, group=group),
        "recv of much": dist.irecv(y, 1, group=group, tag=1),
        "send of much": dist.isend(torch.ones(COUNT), 1, group=group, tag=2),
    }
    spared = dist.irecv(z := torch.zeros(3), other, group=group)
    store.set(f"ready {rank}", "")
    began = time.monotonic()
    said = []
    for kind, work in waiting.items():
        assert work is not None
        with pytest.raises(dist.DistNetworkError, match="rank 1 has aborted the process") as found:
            work.wait()
        said.append(f"{kind}: {found.value}")
    for call in (dist.recv, dist.send):  # At once: it would never come.
        with pytest.raises(dist.DistNetworkError, match="rank 1 has aborted the process group"):
            call(x, 1, group=group)
    assert time.monotonic() - began < 5 * SOON_S
    dist.send(torch.full((3,), 7.0), other, group=group)  # The others can still talk.
    assert spared is not None
    spared.wait()
    assert z.tolist() == [7.0] * 3
    store.set(f"done {rank}", "")
    return said


@pytest.mark.parametrize("before", [False, True])
def test_messages_with_a_rank_that_aborts_end(before: bool) -> None:
    said = run_group(messages_with_the_aborter, 3, before)
    assert [len(each) for each in said] == [3, 0, 3]
