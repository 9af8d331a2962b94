"""Stage: tests. Work objects and the life of process groups: asynchronous calls, futures, messages,
subgroups, and groups that come again."""

from __future__ import annotations

import gc
import os
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_tent as tent
import torch_tent_autoload
from tests.groups import member, run_group
from tests.processes import run_processes

LARGE = 1 << 20  # elements


def backend_of(group: Any = None) -> Any:
    return (group or dist.group.WORLD)._get_backend(torch.device("cpu"))


# ---- Work and futures ----------------------------------------------------------------------------


def work_tells_of_its_end(rank: int, size: int) -> None:
    for count in (5, LARGE):
        x = torch.full((count,), float(rank))
        work = dist.all_reduce(x, async_op=True)
        assert work is not None
        deadline = time.monotonic() + 20
        while not work.is_completed():
            assert time.monotonic() < deadline
        assert work.is_success()
        if not torch.__version__.startswith("2.11."):  # It cannot give an exception to Python.
            assert work.exception() is None
        assert work.wait()
        work.synchronize()
        assert work.result()[0] is not None
        assert x[0] == x[-1] == size * (size - 1) / 2
        with pytest.raises(RuntimeError, match="recv or recv-from-any"):
            work.source_rank()


def futures_complete_by_themselves(rank: int, size: int) -> None:
    for count in (5, LARGE):
        x = torch.full((count,), float(rank))
        work = dist.all_reduce(x, async_op=True)
        assert work is not None
        doubled = work.get_future().then(lambda f: f.value()[0] * 2)
        called = threading.Event()
        work.get_future().add_done_callback(lambda _, called=called: called.set())
        assert called.wait(20)
        assert doubled.wait()[0] == size * (size - 1)
        done = work.get_future()  # of what has ended
        assert done.value()[0].data_ptr() == x.data_ptr()
    ended = dist.barrier(async_op=True)
    assert ended is not None
    assert ended.get_future().wait() == []


def test_a_work_tells_of_its_end() -> None:
    run_group(work_tells_of_its_end, 2)


def test_futures_complete_by_themselves() -> None:
    run_group(futures_complete_by_themselves, 2)


def dropped_works_go_on(rank: int, size: int) -> None:
    if rank == 0:
        for n in range(20):
            dist.isend(torch.full((LARGE // 4,), float(n)), 1, tag=n)
        gc.collect()
        junk = [torch.full((LARGE // 4,), -1.0) for _ in range(20)]  # Into memory freed too early.
        del junk
        dist.barrier()
    else:
        frame = torch.zeros(2, LARGE // 4)
        view = frame.t()[:, 0]
        strided = torch.zeros(LARGE // 4, 2)[:, 1]
        for n in reversed(range(1, 20)):
            dist.recv(view, 0, tag=n)
            assert (view == n).all()
        dist.irecv(strided, 0, tag=0)  # Nobody waits for it, and its memory is not the tensor's.
        dist.barrier()
        deadline = time.monotonic() + 20
        while strided[-1] != 0 or strided[0] != 0 or not strided.eq(0).all():
            assert time.monotonic() < deadline
        assert (strided == 0).all()
    dist.barrier()


def test_a_work_that_is_dropped_keeps_its_tensors() -> None:
    run_group(dropped_works_go_on, 2)


# ---- messages ------------------------------------------------------------------------------------


def any_source(rank: int, size: int) -> None:
    if rank == 0:
        seen = set()
        for _ in range(2 * (size - 1)):
            x = torch.zeros(3)
            sender = dist.recv(x)
            assert x.tolist() == [sender] * 3
            seen.add(sender)
        assert seen == set(range(1, size))
        work = dist.irecv(torch.zeros(3))
        assert work is not None
        work.wait()
        assert work._source_rank() in seen
    else:
        for _ in range(2):
            dist.send(torch.full((3,), float(rank)), 0)
        if rank == 1:
            dist.send(torch.full((3,), float(rank)), 0)


def test_messages_from_any_rank() -> None:
    run_group(any_source, 3)


def tags_and_order(rank: int, size: int) -> None:
    if rank == 0:
        for tag in (3, 1, 2):
            for n in range(5):
                dist.send(torch.tensor([tag * 10 + n]), 1, tag=tag)
    else:
        for tag in (1, 2, 3):
            for n in range(5):
                x = torch.zeros(1, dtype=torch.int64)
                dist.recv(x, 0, tag=tag)
                assert x.item() == tag * 10 + n
    empty = torch.empty(0)
    dist.send(empty, 1) if rank == 0 else dist.recv(empty, 0)


def test_messages_match_by_tag_and_come_in_order() -> None:
    run_group(tags_and_order, 2)


def tensor_api_beside(rank: int, size: int) -> None:
    group = dist.new_group([0, 2])
    if rank == 0:
        first = tent.send(torch.full((3,), 1.0), dst=2, tag=7, group=group)
        dist.send(torch.full((3,), 2.0), 2, tag=7)
        dist.send(torch.full((3,), 3.0), 2, tag=7, group=group)
        tent.send(torch.full((3,), 4.0), dst=2, tag=7).wait()
        first.wait()
    elif rank == 2:
        x = torch.zeros(3)
        found = []
        dist.recv(x, 0, tag=7, group=group)
        found.append(x[0].item())
        transfer = tent.recv(x, tag=7)
        transfer.wait()
        found.append(x[0].item())
        assert transfer.source == 0
        dist.recv(x, 0, tag=7)
        found.append(x[0].item())
        tent.recv(x, src=0, tag=7, group=group).wait()
        found.append(x[0].item())
        assert found == [3.0, 4.0, 2.0, 1.0]
    dist.barrier()


def test_the_tensor_api_has_messages_of_its_own() -> None:
    run_group(tensor_api_beside, 3)


def ring_of_pairs(rank: int, size: int) -> None:
    to, source = (rank + 1) % size, (rank - 1) % size
    mine = [torch.full((n,), float(rank)) for n in (1, 1000, LARGE // 4)]
    theirs = [torch.empty_like(t) for t in mine]
    ops = [dist.P2POp(dist.irecv, t, source) for t in theirs]
    ops += [dist.P2POp(dist.isend, t, to) for t in mine]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert all((t == source).all() for t in theirs)
    # One future for all of them.
    backend = backend_of()
    backend._start_coalescing()
    backend.send([mine[0]], to, 7)
    backend.recv([theirs[0]], source, 7)
    work = backend._end_coalescing()
    assert [t.tolist() for t in work.get_future().wait()] == [[float(source)]]


@pytest.mark.parametrize("size", [2, 3])
def test_exchanges_that_are_given_together(size: int) -> None:
    run_group(ring_of_pairs, size)


# ---- groups within groups ------------------------------------------------------------------------


def subgroups(rank: int, size: int) -> None:
    pairs = [dist.new_group([0, 2]), dist.new_group([1, 3]), dist.new_group([0, 1, 3])]
    for members, group in zip(([0, 2], [1, 3], [0, 1, 3]), pairs, strict=True):
        if rank not in members:
            continue
        x = torch.tensor([float(rank)])
        dist.all_reduce(x, group=group)
        assert x.item() == sum(members)
        y = torch.tensor([rank])
        dist.broadcast(y, members[-1], group=group)
        assert y.item() == members[-1]
    if rank in (0, 2):
        dist.destroy_process_group(pairs[0])
    dist.barrier()


def test_subgroups() -> None:
    run_group(subgroups, 4)


def split_groups(rank: int, size: int) -> None:
    world: Any = dist.group.WORLD
    for _ in range(2):  # The same split again is another group.
        members = [0, 2] if rank in (0, 2) else [1, 3]
        part = world.split_group(members, group_name=f"part{members[0]}", group_desc="half")
        assert (part.size(), part.rank()) == (2, members.index(rank))
        x = torch.tensor([float(rank)])
        part.allreduce([x], dist.AllreduceOptions()).wait()
        assert x.item() == sum(members)
    alone = backend_of().name()
    assert alone == "tent"
    dist.barrier()


def test_split_groups() -> None:
    run_group(split_groups, 4)


def threads_at_once(rank: int, size: int) -> None:
    groups = [dist.new_group(timeout=timedelta(seconds=20)) for _ in range(6)]
    wrong: list[str] = []

    def reduce_often(number: int, group: Any) -> None:
        for turn in range(30):
            count = [3, 5000, 40_000][turn % 3]
            x = torch.full((count,), float(rank + number + turn))
            dist.all_reduce(x, group=group)
            if not (x == sum(r + number + turn for r in range(size))).all():
                wrong.append(f"group {number} turn {turn}")

    threads = [threading.Thread(target=reduce_often, args=item) for item in enumerate(groups)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_several_threads_in_several_groups() -> None:
    run_group(threads_at_once, 3)


def many_groups(rank: int, size: int) -> None:
    groups = [dist.new_group() for _ in range(64)]
    works = []
    for number, group in enumerate(groups):
        x = torch.tensor([float(number)])
        works.append((x, dist.all_reduce(x, group=group, async_op=True)))
    for number, (x, work) in enumerate(works):
        assert work is not None
        work.wait()
        assert x.item() == size * number


def test_many_groups_at_once() -> None:
    run_group(many_groups, 4)


def sequence_numbers(rank: int, size: int) -> None:
    backend = backend_of()
    backend._set_sequence_number_for_group()
    before = backend._get_sequence_number_for_group()
    for _ in range(3):
        dist.barrier()
    assert backend._get_sequence_number_for_group() == before + 3


def test_sequence_numbers_count_collectives() -> None:
    run_group(sequence_numbers, 2)


# ---- again and again -----------------------------------------------------------------------------


def rounds(rank: int, size: int, folder: str) -> list[tuple[int, int]]:
    held = []
    for turn in range(6):
        # The same name of the same store in every round, as an elastic agent's store has it.
        with member(rank, size, f"{folder}/meeting{turn // 3}"):
            x = torch.full((10,), float(rank + turn))
            dist.all_reduce(x)
            assert x[0] == sum(r + turn for r in range(size))
            if rank == 0:  # Nobody receives these: the next round must not, either.
                dist.isend(torch.full((10,), -1.0), 1)
                dist.isend(torch.full((LARGE,), -1.0), 1)
        held.append((len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))))
    return held


def test_groups_that_are_destroyed_and_made_again(tmp_path: Path) -> None:
    for held in run_processes(rounds, 2, str(tmp_path)):
        (threads, descriptors), (first_threads, first_descriptors) = held[-1], held[0]
        assert threads <= first_threads, "threads pile up"
        assert descriptors <= first_descriptors + 2, "descriptors pile up"


def leave_without_a_word(rank: int, size: int, folder: str) -> None:
    """Neither waits for its works nor destroys the group, as programs do that end early."""
    torch_tent_autoload.register()
    method = f"file://{folder}/meeting"
    dist.init_process_group("tent", init_method=method, rank=rank, world_size=size)
    x = torch.ones(3)
    dist.all_reduce(x)
    assert x[0] == size
    kept.append(dist.irecv(torch.zeros(3), 1 - rank, tag=1))
    kept.append(dist.isend(torch.zeros(LARGE), 1 - rank, tag=2))
    future = dist.all_reduce(torch.ones(LARGE), async_op=True).get_future()  # type: ignore
    kept.append(future.then(lambda f: f.value()))


kept: list[Any] = []


def test_a_process_may_end_with_works_under_way(tmp_path: Path) -> None:
    run_processes(leave_without_a_word, 2, str(tmp_path), fresh=True, timeout=50)


def destroyed_group(rank: int, size: int) -> str:
    group = dist.new_group()
    backend = backend_of(group)
    dist.barrier(group)
    pending = backend.recv([torch.zeros(3)], 1 - rank, 1)
    dist.destroy_process_group(group)
    with pytest.raises(RuntimeError, match="destroyed"):
        pending.wait()
    with pytest.raises(RuntimeError, match="destroyed"):
        backend.allreduce([torch.zeros(3)], dist.AllreduceOptions()).wait()
    dist.barrier()  # Who leaves first is gone, which the other would hear instead.
    return ""


def test_a_destroyed_group_ends_what_runs_and_refuses_more() -> None:
    run_group(destroyed_group, 2)


def detailed(rank: int, size: int) -> None:
    x = torch.ones(4) * rank
    dist.all_reduce(x)
    assert x[0] == 1
    outputs = [torch.empty(4), torch.empty(4)]
    dist.all_gather(outputs, x)
    world: Any = dist.group.WORLD
    assert world._get_backend(torch.device("cpu")).name() == "tent"
    wrong = torch.zeros(3 + rank)
    with pytest.raises(RuntimeError, match=r"(?s)mismatch.*shape"):
        dist.all_reduce(wrong)


def detail_process(rank: int, size: int, meeting: str) -> None:
    torch_tent_autoload.register()
    with member(rank, size, meeting):
        detailed(rank, size)


def test_torchs_own_checks_of_collectives(tmp_path: Path) -> None:
    env = {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}
    run_processes(detail_process, 2, str(tmp_path / "meeting"), env=env, fresh=True, timeout=50)
