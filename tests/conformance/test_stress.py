"""Stage: tests. After torch's tests of ProcessGroupGloo: many operations under way at once, each on
tensors that the others do not touch; empty, strided and sparse tensors; waits that imply others."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.groups import all_wrong, run_group

MANY = 300


def number(rank: int, i: int, size: int) -> float:
    return float(i * size + rank)


def values(rank: int, size: int) -> list[torch.Tensor]:
    return [torch.tensor([number(rank, i, size)]) for i in range(MANY)]


def finish(works: list[Any]) -> None:
    for work in works:
        assert work is not None
        work.wait()


def broadcasts(rank: int, size: int) -> Iterator[str]:
    mine = values(rank, size)
    finish([dist.broadcast(x, i % size, async_op=True) for i, x in enumerate(mine)])
    for i, x in enumerate(mine):
        if x.item() != number(i % size, i, size):
            yield f"broadcast {i}"


def all_reduces(rank: int, size: int) -> Iterator[str]:
    """In place, some of them strided, in works and in futures."""
    mine = values(rank, size)
    wide = [torch.full((3, 4), x.item()).t()[:, ::2] for x in mine]
    works = [
        dist.all_reduce(x, async_op=True) for pair in zip(mine, wide, strict=True) for x in pair
    ]
    futures = [work.get_future() for work in works[::3]]
    torch.futures.collect_all(futures).wait()
    finish(works)
    for i, (x, y) in enumerate(zip(mine, wide, strict=True)):
        total = sum(number(r, i, size) for r in range(size))
        if x.item() != total or not bool((y == total).all()):
            yield f"all_reduce {i}"


def reduces(rank: int, size: int) -> Iterator[str]:
    mine = values(rank, size)
    finish([dist.reduce(x, i % size, async_op=True) for i, x in enumerate(mine)])
    for i, x in enumerate(mine):
        if i % size == rank and x.item() != sum(number(r, i, size) for r in range(size)):
            yield f"reduce {i}"


def coalesced(rank: int, size: int) -> Iterator[str]:
    """all_reduce_coalesced of tensors of several shapes."""
    group = backend_of()
    shapes = [(), (3,), (2, 5), (0,)]
    lists = [[torch.full(s, number(rank, i, size)) for s in shapes] for i in range(MANY // 10)]
    finish([group.allreduce_coalesced(each) for each in lists])
    for i, each in enumerate(lists):
        total = sum(number(r, i, size) for r in range(size))
        if not all(bool((x == total).all()) for x in each):
            yield f"all_reduce_coalesced {i}"


def gathers(rank: int, size: int) -> Iterator[str]:
    mine = values(rank, size)
    outs = [[torch.empty(1) for _ in range(size)] for _ in mine]
    works: list[Any] = []
    for i, x in enumerate(mine):
        if i % 2:
            works.append(dist.all_gather(outs[i], x, async_op=True))
        else:
            root = i // 2 % size
            works.append(dist.gather(x, outs[i] if rank == root else None, root, async_op=True))
    finish(works)
    for i, out in enumerate(outs):
        truth = [number(r, i, size) for r in range(size)]
        if (i % 2 or rank == i // 2 % size) and [x.item() for x in out] != truth:
            yield f"gather {i}"


def scatters(rank: int, size: int) -> Iterator[str]:
    outs = [torch.empty(1) for _ in range(MANY)]
    works: list[Any] = []
    for i, out in enumerate(outs):
        root = i % size
        pieces = [torch.tensor([number(r, i, size)]) for r in range(size)]
        works.append(dist.scatter(out, pieces if rank == root else None, root, async_op=True))
    finish(works)
    for i, out in enumerate(outs):
        if out.item() != number(rank, i, size):
            yield f"scatter {i}"


def exchanges(rank: int, size: int) -> Iterator[str]:
    """Everybody sends to everybody before anybody receives; then receives wait for their sends."""
    others = [r for r in range(size) if r != rank]
    for count in (1, 100_000):
        outs = {r: torch.full((count,), float(rank)) for r in others}
        ins = {r: torch.full((count,), -1.0) for r in others}
        finish([dist.isend(outs[r], r) for r in others] + [dist.irecv(ins[r], r) for r in others])
        first = [dist.irecv(ins[r], r, tag=1) for r in others]
        finish(first + [dist.isend(outs[r], r, tag=1) for r in others])
        if not all(bool((x == r).all()) for r, x in ins.items()):
            yield f"exchange of {count}"


def waits_imply(rank: int, size: int) -> Iterator[str]:
    """A barrier, and the last of many works, come after what was started before them."""
    x = torch.full((1000,), float(rank))
    work = dist.all_reduce(x, async_op=True)
    assert work is not None
    dist.barrier()
    work.wait()
    if not bool((x == sum(range(size))).all()):
        yield "all_reduce before a barrier"
    for _ in range(20):  # Sums of sums: the order of calls is the order of results.
        y = torch.ones(1)
        for _ in range(5):
            work = dist.all_reduce(y, async_op=True)
            assert work is not None
            work.wait()
        if y.item() != size**5:
            yield f"five sums in a row: {y.item()}"


def empties(rank: int, size: int) -> Iterator[str]:
    for shape in ((0,), (0, 3), (3, 0, 2)):
        x = torch.zeros(shape)
        dist.broadcast(x, 0)
        dist.all_reduce(x)
        dist.reduce(x, size - 1)
        outs = [torch.zeros(shape) for _ in range(size)]
        dist.all_gather(outs, x)
        dist.gather(x, outs if rank == 0 else None, 0)
        dist.scatter(x, outs if rank == 0 else None, 0)
        dist.all_to_all(outs, [x] * size)
        dist.reduce_scatter(x, outs)
        if x.shape != shape or any(o.shape != shape for o in outs):
            yield f"shape {shape} has changed"
    dist.all_reduce(torch.zeros(2).to_sparse())


def sparse_sums(rank: int, size: int) -> Iterator[str]:
    """Different numbers of entries on each rank, or none; repeated indices; dense dimensions."""
    for dims, dense in itertools.product((1, 2), (0, 1, 2)):
        shape = (size + 1,) * dims + (2,) * dense

        def part(r: int, shape: tuple[int, ...] = shape, dims: int = dims) -> torch.Tensor:
            count = 2 * r
            index = torch.arange(count).remainder(r + 1).expand(dims, count)
            values = torch.full((count, *shape[dims:]), float(r + 1))
            return torch.sparse_coo_tensor(index, values, shape)

        mine = part(rank)
        dist.all_reduce(mine)
        total = sum(part(r).to_dense() for r in range(size))
        if not torch.equal(mine.to_dense(), total):  # type: ignore[arg-type]
            yield f"sparse {shape}"


def backend_of() -> Any:
    world: Any = dist.group.WORLD
    return world._get_backend(torch.device("cpu"))


STRESS = [broadcasts, all_reduces, reduces, coalesced, gathers, scatters, exchanges]


def test_many_operations_at_once() -> None:
    assert run_group(all_wrong, 4, *STRESS, waits_imply) == [[]] * 4


@pytest.mark.parametrize("size", [2, 3])
def test_empty_and_sparse_tensors(size: int) -> None:
    assert run_group(all_wrong, size, empties, sparse_sums) == [[]] * size


def async_sparse(rank: int, size: int) -> list[float]:
    """Started and left alone: the caller comes back at once, the others do not wait for him, and
    what he starts next meets what the others start next."""
    held = []
    for turn in range(3):
        sums = [torch.full((4, 2), float(rank + i)).to_sparse(1) for i in range(20)]
        dense = torch.full((5,), float(rank))
        if rank == 1:
            time.sleep(0.5)  # Whoever blocks, waits for this.
        began = time.monotonic()
        works = [dist.all_reduce(x, async_op=True) for x in sums]
        works.append(dist.all_reduce(dense, async_op=True))
        held.append(time.monotonic() - began)
        futures = [work.get_future() for work in works[: 5 * turn]]
        if turn == 1:  # Nobody waits here, on rank 0: the notifier sees to it.
            dist.barrier()
            if rank == 0:
                time.sleep(0.3)
        torch.futures.collect_all(futures).wait()
        finish(works)
        for i, x in enumerate(sums):
            assert x.to_dense().eq(sum(r + i for r in range(size))).all()
        assert dense[0] == sum(range(size))
        dist.barrier()
    return held


def test_sums_of_sparse_tensors_do_not_block_their_caller() -> None:
    held = run_group(async_sparse, 3)
    assert max(held[0] + held[2]) < 0.45, held


def dropped_sparse(rank: int, size: int) -> None:
    """Works that nobody keeps, and one whose group goes while it waits for the others."""
    x = torch.ones(3).to_sparse()
    dist.all_reduce(x, async_op=True)
    gc.collect()
    dist.barrier()
    deadline = time.monotonic() + 20
    while x.to_dense()[0] != size:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    group = dist.new_group()
    if rank == 0:
        work = dist.all_reduce(torch.ones(3).to_sparse(), group=group, async_op=True)
        assert work is not None
        with pytest.raises(dist.DistNetworkError, match="goes on"):
            work.wait(timedelta(seconds=0.2))
        dist.destroy_process_group(group)
        with pytest.raises(RuntimeError, match="destroyed"):
            work.wait()
        with pytest.raises(RuntimeError, match="destroyed"):
            work.get_future().wait()
    dist.barrier()


def test_sums_of_sparse_tensors_that_are_left_alone() -> None:
    run_group(dropped_sparse, 3)


# ---- sums that cannot be ------------------------------------------------------------------------


def odd_sparse(rank: int, size: int) -> list[str]:
    said = []
    for shape, dims in (((4 + rank,), 1), ((4, 4), 2 - rank), ((4,) * (1 + rank), 1)):
        x = torch.sparse_coo_tensor(
            torch.zeros(dims, 1, dtype=torch.int64), torch.ones(1, *shape[dims:]), shape
        )
        with pytest.raises(RuntimeError) as found:
            dist.all_reduce(x)
        said.append(str(found.value))
    y = torch.ones(2)
    dist.all_reduce(y)  # The group goes on.
    assert y[0] == size
    return said


def test_sparse_tensors_of_different_shapes_are_refused_by_all_ranks() -> None:
    for said in run_group(odd_sparse, 2):
        assert len(said) == 3
        assert all("sparse tensors of one shape" in words for words in said), said
