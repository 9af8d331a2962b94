"""Tests of torch_tent.groups: ranks of process groups of any backend, and what is no rank."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore

import torch_tent as tent
from tests.groups import run_group
from tests.pairs import WAIT_S, two_engines, until
from torch_tent.engines import Engine
from torch_tent.settings import Settings


def pass_on(rank: int, size: int) -> tuple[Any, ...]:
    """Around the ring in the default group; then within the group of the even ranks."""
    left, right = (rank - 1) % size, (rank + 1) % size
    x, y = torch.full((3,), float(rank)), torch.zeros(3)
    sent = tent.send(x, dst=right, tag=7)
    received = tent.recv(y, src=left, tag=7)
    assert received.wait(WAIT_S) is y
    assert sent.wait(WAIT_S) is None
    assert received.source == left
    even = dist.new_group([0, 2])
    inner = None
    if rank in (0, 2):
        z = torch.zeros(3)
        other = tent.recv(z, tag=7, group=even)
        tent.send(x, dst=2 - rank, tag=7, group=even).wait(WAIT_S)
        other.wait(WAIT_S)
        inner = (other.source, z[0].item())
    else:
        with pytest.raises(tent.TentError, match="not a member"):
            tent.send(x, dst=2, group=even)
    dist.barrier()
    return y[0].item(), inner


@pytest.mark.parametrize("backend", ["gloo", "tent"])
def test_ranks_of_a_process_group(backend: str) -> None:
    results = run_group(pass_on, 3, backend=backend)
    assert results == [(2, (2, 2)), (0, None), (1, (0, 0))]


def gather_from_any(rank: int, size: int) -> list[int]:
    """Rank 0 hears of all others, whom it never named."""
    if rank == 0:
        found = []
        for _ in range(size - 1):
            y = torch.zeros(1, dtype=torch.int64)
            transfer = tent.recv(y, tag=1)
            transfer.wait(WAIT_S)
            assert transfer.source == y.item()
            found.append(transfer.source)
        dist.barrier()
        return sorted(found)
    tent.send(torch.tensor([rank]), dst=0, tag=1).wait(WAIT_S)
    dist.barrier()
    return []


@pytest.mark.parametrize("backend", ["gloo", "tent"])
def test_any_source(backend: str) -> None:
    assert run_group(gather_from_any, 3, backend=backend)[0] == [1, 2]


def only_the_default_engine(rank: int, size: int) -> str:
    other = Engine(Settings())
    try:
        other.send(torch.zeros(1), 1 - rank)
    except tent.TentError as error:
        return str(error)
    finally:
        other.close()
    return ""


def test_a_tent_group_belongs_to_the_default_engine() -> None:
    assert "Engine.join" in run_group(only_the_default_engine, 2)[0]
    assert run_group(only_the_default_engine, 2, backend="gloo") == ["", ""]


def groups_come_and_go(rank: int, size: int) -> list[float]:
    found = []
    for turn in range(3):
        group = dist.new_group([0, 1])
        y = torch.zeros(1)
        received = tent.recv(y, 1 - rank, group=group)
        tent.send(torch.tensor([float(turn)]), 1 - rank, group=group).wait(WAIT_S)
        received.wait(WAIT_S)
        found.append(y.item())
        dist.destroy_process_group(group)
    return found


def test_groups_that_are_gone_do_not_answer_for_new_ones() -> None:
    assert run_group(groups_come_and_go, 2, backend="gloo") == [[0, 1, 2]] * 2


def test_one_group_does_not_hear_another() -> None:
    with two_engines() as pair:
        store = HashStore()
        first = [pair.a.join(store, 0, 2, "first"), pair.b.join(store, 1, 2, "first")]
        x, y, z = torch.ones(2), torch.zeros(2), torch.zeros(2)
        here = pair.b.recv(y, 0, group=first[1])
        there = pair.b.recv(z, 0, group=pair.group_b)
        pair.a.send(2 * x, 1, group=pair.group_a).wait(WAIT_S)
        there.wait(WAIT_S)
        assert not here.done()
        pair.a.send(x, 1, group=first[0]).wait(WAIT_S)
        here.wait(WAIT_S)
        assert (y.tolist(), z.tolist()) == ([1, 1], [2, 2])


BAD_CALLS: list[tuple[dict[str, Any], Any, str]] = [
    ({"dst": 0}, ValueError, r"rank 0 is this process.*copy_"),
    ({"dst": 2}, ValueError, "rank 2 is not in the group, whose ranks are 0 to 1"),
    ({"dst": -1}, ValueError, "rank -1 is not in the group"),
    ({"dst": "1"}, TypeError, "a rank is an integer, not '1'"),
    ({"dst": None}, TypeError, "a rank is an integer, not None"),
    ({"tag": -1}, ValueError, "tag is -1"),
    ({"tag": 1 << 63}, ValueError, "tag is 9223372036854775808"),
    ({"tag": "7"}, TypeError, "tag is '7'"),
    ({"group": None}, tent.TentError, r"no process group.*init_process_group"),
    ({"group": "world"}, TypeError, "group is a str"),
    ({"group": dist.GroupMember.NON_GROUP_MEMBER}, tent.TentError, "not a member"),
    ({"x": [1.0]}, TypeError, "the source is a list"),
    ({"priority": "high"}, ValueError, "priority is 'high'"),
    ({"require": "nvlink"}, tent.TransferError, "not in a GPU's memory"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD_CALLS)
def test_bad_calls_are_named_and_nothing_is_left(
    changed: dict[str, Any], error: Any, message: str
) -> None:
    with two_engines() as pair:
        given = {"x": torch.ones(2), "dst": 1, "group": pair.group_a} | changed
        with pytest.raises(error, match=message):
            pair.a.send(given.pop("x"), given.pop("dst"), **given)
        assert not pair.a.flights.running


@pytest.mark.parametrize("source", [0, None])
def test_what_a_rank_has_sent_outlives_it(source: int | None) -> None:
    """Also for a rank that had never asked who the sender is."""
    with two_engines() as pair:
        for value in range(3):
            pair.a.send(torch.full((2,), value), 1, 5, group=pair.group_a).wait(WAIT_S)
        pair.a.close()
        until(lambda: not pair.b.stats()["control"]["peers"])
        for value in range(3):
            y = torch.zeros(2, dtype=torch.int64)
            received = pair.b.recv(y, source, 5, group=pair.group_b)
            received.wait(WAIT_S)
            assert (y.tolist(), received.source) == ([value, value], 0)
        with pytest.raises(tent.PeerLostError, match="closed its engine"):
            pair.b.recv(torch.zeros(2), 0, 5, group=pair.group_b).wait(WAIT_S)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    with two_engines() as pair:
        y = torch.zeros(2)
        received = pair.b.recv(y, np.int64(0), np.int32(5), group=pair.group_b)
        pair.a.send(torch.ones(2), torch.tensor(1), 5, group=pair.group_a)
        received.wait(WAIT_S)
        assert received.source == 0


def test_a_rank_that_never_comes_is_named() -> None:
    with two_engines() as pair:
        store = HashStore()
        store.set_timeout(timedelta(milliseconds=50))
        group = pair.a.join(store, 0, 2, "alone")
        with pytest.raises(tent.TentError, match="rank 1 has not said where it can be reached"):
            pair.a.send(torch.zeros(1), 1, group=group)
        with pytest.raises(ValueError, match="rank 2 of 2"):
            pair.a.join(store, 2, 2)


def test_what_is_required_but_not_there_is_named() -> None:
    with two_engines(transports=("tcp",)) as found:
        with pytest.raises(tent.TransferError, match="transports tcp alone"):
            found.a.send(torch.zeros(1), 1, group=found.group_a, require="shm")
        sent, _ = found.exchange(torch.ones(1 << 16), torch.zeros(1 << 16), require="tcp")
        assert all(rail.startswith("tcp") for rail in sent.report()["rails"])
