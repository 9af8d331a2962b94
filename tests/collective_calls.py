"""Stage: tests. Collectives of several ranks with random data, and what should come out of them.

Run by the real executor on the network of tests/native/collectives_world.cpp, on the test's thread.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.reductions import DTYPES, KINDS, OPS, reduced, whole_numbers

OK, FAILED, PEER_LOST, TIMEOUT, CANCELLED, MISMATCH = 0, 1, 2, 4, 5, 6  # Code in core/types.h
# small_bytes, chunk_bytes, buffered_bytes, direct_ranks: as in production, and such that small
# buffers take the ways of large ones.
LARGE, SMALL = (32 << 10, 512 << 10, 8 << 10, 8), (0, 64, 0, 0)
TUNINGS = [LARGE, SMALL, (1 << 20, 64, 0, 9), (1 << 20, 128, 1 << 20, 2), (256, 64, 64, 4)]
SECOND = 1_000_000_000


def buffers(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), t.nbytes) for t in tensors]


@dataclass
class Call:
    """One collective of all ranks: what goes in, what should come out, and where it did."""

    kind: str
    op: str
    dtype: torch.dtype
    root: int
    inputs: list[list[torch.Tensor]]  # by rank, then by buffer
    truth: list[list[torch.Tensor]]
    outputs: list[list[torch.Tensor]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of the started calls, by rank

    @property
    def what(self) -> tuple[int, int, int, int]:
        return (
            KINDS.index(self.kind), OPS.index(self.op), DTYPES.index(self.dtype), self.root,
        )  # fmt: skip

    def start(self, world: Any, rank: int, tag: int = 1, timeout: int = -1) -> None:
        self.numbers += [-1] * (rank + 1 - len(self.numbers))
        self.numbers[rank] = world.start(
            rank, self.what, buffers(self.inputs[rank]), buffers(self.outputs[rank]), tag, timeout
        )

    def check(self, world: Any) -> None:
        for rank, truth in enumerate(self.truth):
            assert world.result(self.numbers[rank]) == (OK, "", 1), f"rank {rank}"
            for made, expected in zip(self.outputs[rank], truth, strict=True):
                assert torch.equal(made, expected), f"rank {rank}"


def make_call(
    kind: str,
    size: int,
    count: int,
    seed: int,
    op: str = "SUM",
    dtype: torch.dtype = torch.int32,
    in_place: bool = False,
) -> Call:
    """A call with random data. Buffers per rank are of different sizes, some of them empty."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    root = draw.randrange(size)
    counts = [draw.choice([count, count, count + 3, 1, 0]) for _ in range(size)]

    def fresh(n: int) -> torch.Tensor:
        return whole_numbers(n, dtype, op, generator)

    nothing: list[list[torch.Tensor]] = [[] for _ in range(size)]
    if kind == "barrier":
        call = Call(kind, op, dtype, root, nothing, nothing, nothing)
        return call
    if kind in {"broadcast", "all_reduce", "reduce"}:
        each = [[fresh(count)] for _ in range(size)]
    elif kind in {"all_gather", "gather"}:
        each = [[fresh(counts[rank])] for rank in range(size)]
    elif kind == "all_to_all":
        pair = [[draw.choice([count, 0, 1]) for _ in range(size)] for _ in range(size)]
        each = [[fresh(n) for n in pair[rank]] for rank in range(size)]
    else:
        each = [[fresh(n) for n in counts] for _ in range(size)]
    truth = true_outputs(kind, op, root, each)
    inputs = [x if is_sender(kind, rank, root) else [] for rank, x in enumerate(each)]
    call = Call(kind, op, dtype, root, inputs, truth)
    call.outputs = [[torch.full_like(t, 77) for t in row] for row in truth]
    if in_place:
        alias_own(call)
    return call


def is_sender(kind: str, rank: int, root: int) -> bool:
    return kind not in {"broadcast", "scatter"} or rank == root


def true_outputs(
    kind: str, op: str, root: int, each: list[list[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    ranks = range(len(each))
    if kind == "broadcast":
        return [[] if rank == root else [each[root][0].clone()] for rank in ranks]
    if kind in {"all_reduce", "reduce"}:
        total = reduced(op, [row[0] for row in each])
        return [[total.clone()] if kind == "all_reduce" or r == root else [] for r in ranks]
    if kind in {"all_gather", "gather"}:
        everything = [[row[0].clone() for row in each] for _ in ranks]
        return [
            row if kind == "all_gather" or r == root else [] for r, row in enumerate(everything)
        ]
    if kind == "scatter":
        return [[each[root][rank].clone()] for rank in ranks]
    if kind == "reduce_scatter":
        return [[reduced(op, [row[rank] for row in each])] for rank in ranks]
    return [[each[source][rank].clone() for source in ranks] for rank in ranks]


def alias_own(call: Call) -> None:
    """The own part of the output is the input's memory, as callers who reduce in place have it."""
    for rank, (ins, outs) in enumerate(zip(call.inputs, call.outputs, strict=True)):
        if ins and outs:
            i, o = (0 if len(ins) == 1 else rank), (0 if len(outs) == 1 else rank)
            outs[o] = ins[i]


def finish(world: Any, steps_max: int = 2_000_000) -> None:
    assert world.run(steps_max) < steps_max, "it never came to rest"
