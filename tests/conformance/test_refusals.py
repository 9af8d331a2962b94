"""Stage: tests. After torch's tests of ProcessGroupGloo: calls that make no sense. Whatever gloo
refuses, tent refuses, in words that say what was wrong; afterwards the group can be used."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.groups import run_group

X, Y, D = torch.zeros(3), torch.zeros(4), torch.zeros(3, dtype=torch.float64)
Calls = list[tuple[str, str, Callable[[Any], Any]]]


def rooted(kind: Any, root: int, tensor: int = 0) -> Any:
    options = kind()
    options.rootRank = root
    if hasattr(options, "rootTensor"):
        options.rootTensor = tensor
    return options


def moving(rank: int, size: int) -> Calls:
    """Name, words of the error, call on the backend."""
    broadcast, scatter, gather = dist.BroadcastOptions, dist.ScatterOptions, dist.GatherOptions
    row, short = [X] * size, [X] * (size - 1)
    return [
        ("broadcast", "invalid root rank: -1", lambda b: b.broadcast([X], rooted(broadcast, -1))),
        ("broadcast", f"root rank: {size}", lambda b: b.broadcast([X], rooted(broadcast, size))),
        ("broadcast", "root tensor: -1", lambda b: b.broadcast([X], rooted(broadcast, 0, -1))),
        ("broadcast", "root tensor: 1", lambda b: b.broadcast([X], rooted(broadcast, 0, 1))),
        ("broadcast", "non-empty", lambda b: b.broadcast([], rooted(broadcast, 0))),
        ("broadcast", "single-element", lambda b: b.broadcast([X, D], rooted(broadcast, 0))),
        ("scatter", "root rank: -1", lambda b: b.scatter([X], [], rooted(scatter, -1))),
        ("scatter", "root rank: 9", lambda b: b.scatter([X], [], rooted(scatter, 9))),
        ("scatter", "single-element output", lambda b: b.scatter([], [], rooted(scatter, rank))),
        ("scatter", "output", lambda b: b.scatter([X, X], [], rooted(scatter, rank))),
        ("scatter", "single-element input", lambda b: b.scatter([X], [], rooted(scatter, rank))),
        ("scatter", "input list size", lambda b: b.scatter([X], [short], rooted(scatter, rank))),
        ("scatter", "empty input", lambda b: b.scatter([X], [row], rooted(scatter, 1 - rank))),
        ("scatter", "tensor type", lambda b: b.scatter([X], [[D] * size], rooted(scatter, rank))),
        ("scatter", "tensor size", lambda b: b.scatter([X], [[Y] * size], rooted(scatter, rank))),
        ("gather", "root rank: -1", lambda b: b.gather([], [X], rooted(gather, -1))),
        ("gather", "single-element input", lambda b: b.gather([], [], rooted(gather, rank))),
        ("gather", "single-element input", lambda b: b.gather([], [X, X], rooted(gather, rank))),
        ("gather", "single-element output", lambda b: b.gather([], [X], rooted(gather, rank))),
        ("gather", "output list size", lambda b: b.gather([short], [X], rooted(gather, rank))),
        ("gather", "empty output", lambda b: b.gather([row], [X], rooted(gather, 1 - rank))),
        ("gather", "tensor type", lambda b: b.gather([[D] * size], [X], rooted(gather, rank))),
        ("gather", "tensor size", lambda b: b.gather([[Y] * size], [X], rooted(gather, rank))),
        ("allgather", "non-empty input", lambda b: b.allgather([], [])),
        ("allgather", "same length", lambda b: b.allgather([], [X])),
        ("allgather", "same length", lambda b: b.allgather([row, row], [X])),
        ("allgather", "output list size", lambda b: b.allgather([short], [X])),
        ("allgather", "output list size", lambda b: b.allgather([[*row, X]], [X])),
        ("allgather", "tensor type", lambda b: b.allgather([[D] * size], [X])),
        ("allgather", "tensor size", lambda b: b.allgather([[Y] * size], [X])),
        ("allgather_coalesced", "output lists", lambda b: b.allgather_coalesced([[X]], [X, X])),
        ("alltoall", "list size", lambda b: b.alltoall(row, short, dist.AllToAllOptions())),
    ]  # fmt: skip


def reducing(rank: int, size: int) -> Calls:
    reduce, everybody = dist.ReduceOptions, dist.AllreduceOptions()
    bits = dist.AllreduceOptions()
    bits.reduceOp = dist.ReduceOp.BAND
    product = dist.AllreduceOptions()
    product.reduceOp = dist.ReduceOp.PRODUCT
    together = dist.AllreduceCoalescedOptions()
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (3,))
    return [
        ("allreduce", "non-empty", lambda b: b.allreduce([], everybody)),
        ("allreduce", "single-element", lambda b: b.allreduce([X, D], everybody)),
        ("allreduce", "", lambda b: b.allreduce([X.clone()], bits).wait()),
        ("allreduce", "be summed|unsupported", lambda b: b.allreduce([sparse], product).wait()),
        ("allreduce_coalesced", "non-empty", lambda b: b.allreduce_coalesced([], together)),
        ("allreduce_coalesced", "tensor", lambda b: b.allreduce_coalesced([X, D], together)),
        ("allreduce_coalesced", "dense|layout",
         lambda b: b.allreduce_coalesced([X, sparse], together)),
        ("reduce", "invalid root rank: -1", lambda b: b.reduce([X], rooted(reduce, -1))),
        ("reduce", "invalid root rank: 9", lambda b: b.reduce([X], rooted(reduce, 9))),
        ("reduce", "root tensor: 1", lambda b: b.reduce([X], rooted(reduce, 0, 1))),
        ("reduce", "single-element", lambda b: b.reduce([X, X], rooted(reduce, 0))),
        ("reduce_scatter", "", lambda b: b.reduce_scatter([X], [[X] * (size - 1)])),
        ("send", "single|one", lambda b: b.send([X, X], 1 - rank, 0)),
        ("recv", "non-empty", lambda b: b.recv([], 1 - rank, 0)),
    ]  # fmt: skip


def attempts(rank: int, size: int, backend: str) -> list[tuple[str, str, bool, str]]:
    world: Any = dist.group.WORLD
    native = world._get_backend(torch.device("cpu"))
    said = []
    for name, words, call in [*moving(rank, size), *reducing(rank, size)]:
        try:
            call(native)
            error = ""
        except (RuntimeError, ValueError, TypeError) as found:
            error = f"{type(found).__name__}: {found}"
        said.append((name, words, bool(error), error))
    x = torch.ones(2)
    dist.all_reduce(x)
    assert x[0] == size, "the group cannot be used any more"
    return said


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    return {b: run_group(attempts, 2, b, backend=b) for b in ("tent", "gloo")}


def test_what_gloo_refuses_tent_refuses(answers: dict[str, Any]) -> None:
    for ours, theirs in zip(answers["tent"], answers["gloo"], strict=True):
        missed = [
            (name, words, error)
            for (name, words, refused, _), (_, _, wanted, error) in zip(ours, theirs, strict=True)
            if wanted and not refused
        ]
        assert missed == []


def test_refusals_say_what_was_wrong(answers: dict[str, Any]) -> None:

    for name, words, refused, error in answers["tent"][0]:
        assert refused, f"{name} ({words}) was not refused"
        assert re.search(words, error), f"{name}: {words!r} is not in {error!r}"
        assert name.replace("_", "") in error.replace("_", "").lower(), error
