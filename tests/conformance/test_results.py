"""Stage: tests. After torch's tests of ProcessGroupGloo: what works and their futures give back,
for each operation, compared with gloo; tensors of inference mode; timeouts of one operation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from tests.groups import member, run_group
from tests.processes import run_processes

Calls = dict[str, Callable[[], Any]]
NOTICED_S = 3.0


def native(group: Any = None) -> Any:
    return (group or dist.group.WORLD)._get_backend(torch.device("cpu"))


def calls(rank: int, size: int) -> Calls:
    """Each operation of the backend on fresh tensors; what is started, not waited for."""
    backend = native()

    def x(shape: Any = 3) -> torch.Tensor:
        return torch.full((shape,) if isinstance(shape, int) else shape, float(rank + 1))

    def row() -> list[torch.Tensor]:
        return [x() + 10 * r for r in range(size)]

    def out() -> list[torch.Tensor]:
        return [torch.zeros(3) for _ in range(size)]

    def rooted(kind: Any) -> Any:
        options = kind()
        options.rootRank = 1
        return options

    is_root = rank == 1
    return {
        "broadcast": lambda: backend.broadcast([x((2, 2))], rooted(dist.BroadcastOptions)),
        "allreduce": lambda: backend.allreduce([x()], dist.AllreduceOptions()),
        "sparse": lambda: backend.allreduce([x().to_sparse()], dist.AllreduceOptions()),
        "coalesced": lambda: backend.allreduce_coalesced(
            [x(), x(1)], dist.AllreduceCoalescedOptions()
        ),
        "reduce": lambda: backend.reduce([x()], rooted(dist.ReduceOptions)),
        "allgather": lambda: backend.allgather([out()], [x()]),
        "gather": lambda: backend.gather(
            [out()] if is_root else [], [x()], rooted(dist.GatherOptions)
        ),
        "scatter": lambda: backend.scatter(
            [torch.zeros(3)], [row()] if is_root else [], rooted(dist.ScatterOptions)
        ),
        "reduce_scatter": lambda: backend.reduce_scatter(
            [torch.zeros(3)], [row()], dist.ReduceScatterOptions()
        ),
        "all_gather_base": lambda: backend._allgather_base(torch.zeros(3 * size), x()),
        "all_to_all_base": lambda: backend.alltoall_base(
            torch.zeros(2 * size), x(2 * size), [], [], dist.AllToAllOptions()
        ),
        "barrier": lambda: backend.barrier(dist.BarrierOptions()),
        "recv": lambda: swap(backend, [x()], [torch.zeros(3)], rank, size),
    }


def swap(backend: Any, out: Any, into: Any, rank: int, size: int) -> Any:
    """Receives what the rank before sends; gloo's sends end with their receives."""
    kept.append(backend.send(out, (rank + 1) % size, 3))
    return backend.recv(into, (rank - 1) % size, 3)


kept: list[Any] = []


def plain(value: Any) -> Any:
    """Nested lists of numbers, for comparing."""
    if isinstance(value, torch.Tensor):
        return value.to_dense().tolist()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def numbers(value: Any) -> list[float]:
    """Without the nesting: gloo cuts an output that is one tensor into its ranks' parts."""
    return [n for each in value for n in numbers(each)] if isinstance(value, list) else [value]


def given_back(rank: int, size: int) -> dict[str, Any]:
    """What each work's result() and future give; or the words with which they refuse."""
    found: dict[str, Any] = {}
    for name, call in calls(rank, size).items():
        work = call()
        work.wait()
        said = []
        for ask in (work.result, lambda work=work: work.get_future().wait()):
            try:
                said.append(plain(ask()))
            except RuntimeError:
                said.append("refused")
        found[name] = (*said, work.is_completed(), work.is_success())
    kept.pop().wait()
    return found


def test_works_give_back_what_those_of_gloo_do() -> None:
    ours, theirs = (run_group(given_back, 3, backend=b) for b in ("tent", "gloo"))
    for rank in range(3):
        for name, (result, future, *_) in theirs[rank].items():
            made = ours[rank][name]
            assert list(made[2:]) == [True, True], name
            if name == "reduce" and rank != 1:
                continue  # Gloo leaves sums of some ranks with the others.
            for which, wanted, got in (("result", result, made[0]), ("future", future, made[1])):
                # Gloo refuses for some, and for some it gives nothing though there is something.
                if wanted not in ("refused", []):
                    assert numbers(got) == numbers(wanted), f"{name}: {which} on rank {rank}"


def futures_chain(rank: int, size: int) -> None:
    """Callbacks run for each operation that has a future, before and after its end."""
    for name, call in calls(rank, size).items():
        work = call()
        doubled = work.get_future().then(lambda done: [done.value(), 7])
        assert doubled.wait()[1] == 7, name
        work.wait()
        assert work.get_future().then(lambda done: 8).wait() == 8, name
    kept.pop().wait()


def test_every_operation_has_a_future() -> None:
    run_group(futures_chain, 3)


# ---- tensors of inference mode, and groups beside those of gloo ----------------------------------


def inferred(rank: int, size: int) -> dict[str, Any]:
    """Tensors that no view or copy may track, contiguous or not."""
    with torch.inference_mode():
        x = torch.full((4, 3), float(rank)).t()
        dist.all_reduce(x)
        out = [torch.zeros(4, 3).t() for _ in range(size)]
        dist.all_gather(out, x + rank)
        flat = torch.zeros(size * 4, 3)
        dist.all_gather_into_tensor(flat, torch.full((4, 3), float(rank)))
        dist.broadcast(y := torch.full((5,), float(rank)), 1)
        mixed = torch.zeros(2 * size)
        dist.all_to_all_single(mixed, torch.full((2 * size,), float(rank)))
    weight = torch.nn.Parameter(torch.full((3,), float(rank)))
    with torch.no_grad():
        dist.all_reduce(weight)
    return {"x": plain(x), "out": plain(out), "flat": plain(flat), "y": plain(y),
            "mixed": plain(mixed), "weight": plain(weight.detach())}  # fmt: skip


def test_tensors_of_inference_mode() -> None:
    assert run_group(inferred, 3) == run_group(inferred, 3, backend="gloo")


def beside_gloo(rank: int, size: int) -> None:
    """Groups of tent where the default group, and so the store, is another backend's."""
    groups: list[Any] = [dist.new_group(backend="tent") for _ in range(2)]
    part: Any = dist.new_group([0, 2], backend="tent")
    for group in [*groups, None]:
        x = torch.ones(1000)
        dist.all_reduce(x, group=group)
        assert x[0] == size
    if rank != 1:
        boxes: list[Any] = [None] * 2
        dist.all_gather_object(boxes, rank, group=part)
        assert boxes == [0, 2]


def test_groups_beside_those_of_gloo() -> None:
    run_group(beside_gloo, 3, backend="gloo")


# ---- timeouts ------------------------------------------------------------------------------------


def timeouts_of_operations(rank: int, size: int) -> None:
    """An operation's own timeout counts, not the group's, and only for it."""
    backend = native()
    short = timedelta(seconds=0.4)
    options = [dist.AllreduceOptions(), dist.BarrierOptions(), distributed_c10d.AllgatherOptions()]
    for option in options:
        option.timeout = short
    x, out = torch.ones(3), [torch.ones(3) for _ in range(size)]
    made: list[Callable[[], Any]] = [
        lambda: backend.allreduce([x], options[0]),
        lambda: backend.barrier(options[1]),
        lambda: backend.allgather([out], [x], options[2]),
    ]
    if rank != 0:
        time.sleep(2)
    for call in made:
        if rank != 0:  # What rank 0 has sent may have come.
            with contextlib.suppress(dist.DistNetworkError):
                call().wait()
            continue
        began = time.monotonic()
        with pytest.raises(dist.DistNetworkError, match=r"Timed out after 0\.4"):
            call().wait()
        assert 0.35 < time.monotonic() - began < 0.4 + NOTICED_S
    dist.barrier()
    y = torch.ones(3)
    dist.all_reduce(y)
    assert y[0] == size


def test_an_operation_has_a_timeout_of_its_own() -> None:
    run_group(timeouts_of_operations, 2)


def long_timeouts(rank: int, size: int, meeting: str, days: int) -> None:
    longest = timedelta.max if days < 0 else timedelta(days=days)
    with member(rank, size, meeting, timeout=longest):
        group = dist.new_group(timeout=longest)
        for count in (3, 100_000):
            x = torch.ones(count)
            dist.all_reduce(x, group=group)
            work = dist.all_reduce(x, async_op=True)
            assert work is not None
            work.wait(longest)
            assert x[0] == size * size
        y = torch.zeros(3)
        receive = dist.irecv(y, 1 - rank)
        dist.send(torch.ones(3), 1 - rank)
        assert receive is not None
        receive.wait(longest)
        assert y[0] == 1


@pytest.mark.parametrize("days", [365 * 300, -1], ids=["300 years", "the longest"])
def test_timeouts_beyond_the_clock(tmp_path: Any, days: int) -> None:
    run_processes(long_timeouts, 2, str(tmp_path / "meeting"), days)
