"""Stage: tests. Backends per device, as programs for GPUs write them, on a machine without; groups
made out of groups or by some ranks only; objects; and torch's wrapper for debugging."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.groups import member, run_group
from tests.processes import run_processes

CPU = torch.device("cpu")


def backend_of(group: Any, device: str = "cpu") -> Any:
    return group._get_backend(torch.device(device))


def sums(rank: int, size: int, name: str) -> str:
    """CPU tensors go through the CPU's backend, whatever the other devices have."""
    x = torch.full((5,), float(rank))
    dist.all_reduce(x)
    assert x.tolist() == [sum(range(size))] * 5
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, {"rank": rank})
    assert gathered == [{"rank": r} for r in range(size)]
    group: Any = dist.new_group(list(range(size)))  # Inherits the default group's backends.
    assert backend_of(group).name() == name
    dist.barrier(group)
    return str(backend_of(dist.group.WORLD).name())


@pytest.mark.parametrize(
    ("string", "name"),
    [
        ("cpu:tent", "tent"), ("cpu:tent,cuda:tent", "tent"), ("cuda:tent,cpu:tent", "tent"),
        ("cpu:gloo,cuda:tent", "gloo"), ("cpu:tent,cuda:gloo", "tent"), ("TENT", "tent"),
    ],
)  # fmt: skip
def test_each_device_gets_its_backend(string: str, name: str) -> None:
    assert run_group(sums, 2, name, backend=string) == [name] * 2


def both_devices(rank: int, size: int) -> tuple[str, str]:
    world = dist.group.WORLD
    return backend_of(world).name(), backend_of(world, "cuda").name()


def test_two_backends_stand_side_by_side() -> None:
    found = run_group(both_devices, 2, backend="cpu:gloo,cuda:tent")
    assert found == [("gloo", "tent")] * 2
    found = run_group(both_devices, 2, backend="cpu:tent,cuda:gloo")
    assert found == [("tent", "gloo")] * 2


def without_nccl(rank: int, size: int, meeting: str) -> str:
    """A torch without NCCL says so itself; what tent has made by then does not stand in the way."""
    if dist.is_nccl_available():
        with member(rank, size, f"{meeting}-1", backend="cpu:tent,cuda:nccl"):
            sums(rank, size, "tent")
    else:
        group = member(rank, size, f"{meeting}-1", backend="cpu:tent,cuda:nccl")
        with pytest.raises(RuntimeError, match="NCCL"), group:
            pytest.fail("it was made")
    with member(rank, size, f"{meeting}-2"):
        return sums(rank, size, "tent")


def test_nccl_beside_tent(tmp_path: Path) -> None:
    assert run_processes(without_nccl, 2, str(tmp_path / "meeting")) == ["tent"] * 2


def only_for_gpus(rank: int, size: int) -> None:
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(torch.ones(3))


def test_cpu_tensors_of_a_group_for_gpus_alone_are_refused() -> None:
    run_group(only_for_gpus, 2, backend="cuda:tent")


# ---- groups out of groups ------------------------------------------------------------------------


def split_as_torch_does(rank: int, size: int) -> None:
    """As dist.split_group, which itself asks for a GPU: with a copy of the parent's options."""
    world: Any = dist.group.WORLD
    parent = backend_of(world)
    before = parent.options
    members = [0, 2] if rank in (0, 2) else [1, 3]
    options = copy.deepcopy(before)
    part = world.split_group(
        members, timeout=timedelta(seconds=7), opts=options, group_name=f"p{members[0]}"
    )
    child = backend_of(part)
    assert (child.options.group_name, child.options._timeout) == (
        f"p{members[0]}",
        timedelta(seconds=7),
    )
    assert list(child.options.global_ranks_in_group) == members
    after = parent.options
    assert (after.group_name, after._timeout) == (before.group_name, before._timeout)
    other = world.split_group(members, group_name=f"q{members[0]}")
    for group in (part, other):
        x = torch.tensor([float(rank)])
        group.allreduce([x], dist.AllreduceOptions()).wait()
        assert x.item() == sum(members)
    again: Any = dist.new_group(
        members, pg_options=copy.copy(before), use_local_synchronization=True
    )
    y = torch.tensor([float(rank)])
    dist.all_reduce(y, group=again)
    assert y.item() == sum(members)


def test_groups_are_split_with_copied_options() -> None:
    run_group(split_as_torch_does, 4)


def local_groups(rank: int, size: int) -> None:
    """Made by their members alone, and a second time by the same members."""
    pair = [rank // 2 * 2, rank // 2 * 2 + 1]
    groups = [dist.new_group(pair, use_local_synchronization=True) for _ in range(2)]
    for group in groups:
        x = torch.tensor([float(rank)])
        dist.all_reduce(x, group=group)
        assert x.item() == sum(pair)
    subgroup, _ = dist.new_subgroups(2)
    y = torch.tensor([float(rank)])
    dist.all_reduce(y, group=subgroup)
    assert y.item() == 2 * (rank // 2 * 2) + 1


def test_groups_that_only_their_members_make() -> None:
    run_group(local_groups, 4)


def named_timeouts(rank: int, size: int) -> None:
    world: Any = dist.group.WORLD
    other = dist.new_group()
    world.set_timeout(timedelta(milliseconds=300))
    assert backend_of(world).options._timeout == timedelta(milliseconds=300)
    if rank == 0:
        with pytest.raises(dist.DistNetworkError, match=r"Timed out after 0\.3"):
            dist.all_reduce(torch.ones(3))
    dist.barrier(other)


def test_a_groups_timeout_can_be_set() -> None:
    run_group(named_timeouts, 2)


# ---- objects, and torch's wrapper for debugging --------------------------------------------------


def objects(rank: int, size: int) -> None:
    boxes: list[Any] = [None] * size if rank == 1 else []
    dist.gather_object(("from", rank), boxes if rank == 1 else None, dst=1)
    assert rank != 1 or boxes == [("from", r) for r in range(size)]
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, [{"for": r} for r in range(size)] if rank == 0 else None, src=0)
    assert mine == [{"for": rank}]
    if rank == 0:
        dist.send_object_list(["text", 7, torch.arange(3)], dst=1)
    elif rank == 1:
        got: list[Any] = [None] * 3
        assert dist.recv_object_list(got, src=0) == 0
        assert got[:2] == ["text", 7]
        assert got[2].tolist() == [0, 1, 2]
    everything: list[Any] = [None] * size
    dist.all_gather_object(everything, list(range(10_000 * rank)))
    assert [len(each) for each in everything] == [10_000 * r for r in range(size)]


def test_objects() -> None:
    run_group(objects, 3)


def in_detail(rank: int, size: int, folder: str) -> None:
    """The wrapper compares the calls of all ranks before they reach the backend."""
    with member(rank, size, f"{folder}/meeting"):
        objects(rank, size)
        sums(rank, size, "tent")
        dist.monitored_barrier()
        with pytest.raises(RuntimeError, match=r"(?s)mismatch|Detected"):
            dist.all_reduce(torch.ones(3)) if rank else dist.broadcast(torch.ones(3), 0)


def test_torchs_wrapper_for_debugging(tmp_path: Path) -> None:
    env = {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}
    run_processes(in_detail, 3, str(tmp_path), env=env, fresh=True, timeout=50)
