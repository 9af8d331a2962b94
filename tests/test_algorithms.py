"""Stage: tests. Every algorithm of csrc/collectives for 1 to 9 ranks, run by the real executor in
one process, on a network that delivers in any order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native_modules import native_module
from tests.reductions import DTYPES, KINDS, OPS, is_defined, reduced, whole_numbers

OK, FAILED, PEER_LOST, TIMEOUT, CANCELLED, MISMATCH = 0, 1, 2, 4, 5, 6  # Code in core/types.h
# small_bytes, chunk_bytes, buffered_bytes, direct_ranks: as in production, and such that small
# buffers take the ways of large ones.
LARGE, SMALL = (32 << 10, 512 << 10, 8 << 10, 8), (0, 64, 0, 0)
TUNINGS = [LARGE, SMALL, (1 << 20, 64, 0, 9), (1 << 20, 128, 1 << 20, 2), (256, 64, 64, 4)]
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def native() -> ModuleType:
    return native_module("collectives_world", ["collectives/*.cpp"])


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


@st.composite
def calls(draw: Any) -> tuple[int, list[Call], tuple[int, ...], int]:
    size = draw(st.integers(1, 9))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(KINDS))
        dtype = draw(st.sampled_from(DTYPES))
        op = draw(st.sampled_from([op for op in OPS if is_defined(op, dtype)]))
        count = draw(st.sampled_from([0, 1, 2, 5, 17, 64, 257, 1001]))
        seed = draw(st.integers(0, 2**32))
        made.append(make_call(kind, size, count, seed, op, dtype, draw(st.booleans())))
    return size, made, draw(st.sampled_from(TUNINGS)), draw(st.integers(0, 2**63))


@settings(max_examples=300)
@given(calls())
def test_collectives_are_right_in_any_order_of_delivery(
    native: ModuleType, drawn: tuple[int, list[Call], tuple[int, ...], int]
) -> None:
    size, made, tuning, seed = drawn
    world = native.World(size, tuning, seed)
    order = [(tag, rank) for tag in range(len(made)) for rank in range(size)]
    random.Random(seed).shuffle(order)
    for tag, rank in order:
        made[tag].start(world, rank, tag)
        world.run(random.Random(seed + rank).randrange(20))
    finish(world)
    for call in made:
        call.check(world)
    assert world.open_messages() == 0
    assert [world.lingering(rank) for rank in range(size)] == [0] * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", range(1, 10))
def test_every_collective_for_every_number_of_ranks(
    native: ModuleType, kind: str, size: int, seed: int
) -> None:
    for tuning in TUNINGS:
        for count in (0, 1, 33, 1000):
            for in_place in (False, True):
                call = make_call(kind, size, count, seed, in_place=in_place)
                world = native.World(size, tuning, seed)
                for rank in range(size):
                    call.start(world, rank)
                finish(world)
                call.check(world)


@pytest.mark.parametrize("tuning", [LARGE, SMALL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", ["SUM", "AVG", "PRODUCT", "MIN", "MAX"])
def test_all_ranks_get_the_same_bits(
    native: ModuleType, op: str, dtype: torch.dtype, tuning: tuple[int, ...], seed: int
) -> None:
    """Whatever is rounded, and for signed zeros."""
    generator = torch.Generator().manual_seed(seed)
    for size in (2, 3, 5, 8):
        parts = [torch.randn(300, generator=generator).to(dtype) for _ in range(size)]
        for part in parts:
            part[:100] *= 0.0
        outputs = [[part.clone()] for part in parts]
        call = Call("all_reduce", op, dtype, 0, [[part] for part in parts], [], outputs)
        world = native.World(size, tuning, seed)
        for rank in range(size):
            call.start(world, rank)
        finish(world)
        bits = [row[0].view(torch.uint8) for row in outputs]
        assert all(torch.equal(bits[0], other) for other in bits[1:])
        exact = reduced(op, [part.double() for part in parts])
        torch.testing.assert_close(outputs[0][0].double(), exact, rtol=0.05, atol=0.05)


def regions(step: tuple[Any, ...], in_place: bool) -> Iterator[tuple[Any, int, int, bool]]:
    """What a step touches: (buffer, begin, end, whether it writes)."""
    kind, _, _, nbytes, to, left, right, _ = step
    touched = {0: [(left, False)], 1: [(to, True)], 3: [(to, True)], 4: [(left, False), (to, True)]}
    for (space, index, offset), writes in touched.get(
        kind, [(left, False), (right, False), (to, True)]
    ):
        where = (0 if in_place and space == 1 else space, index)
        if nbytes > 0:
            yield where, offset, offset + nbytes, writes


@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_touch_the_same_bytes_wait_for_each_other(
    native: ModuleType, kind: str, seed: int
) -> None:
    """Else a message that is still being sent could be overwritten."""
    for size in (2, 3, 4, 7):
        for tuning in TUNINGS:
            for in_place in {False, kind in {"all_reduce", "reduce"}}:
                call = make_call(kind, size, 200, seed)
                for rank in range(size):
                    nbytes = [
                        [t.nbytes for t in row] for row in (call.inputs[rank], call.outputs[rank])
                    ]
                    scratch, steps = native.plan(call.what, rank, size, *nbytes, tuning)
                    check_order(steps, scratch, in_place)


def check_order(steps: list[tuple[Any, ...]], scratch: int, in_place: bool) -> None:
    before: list[int] = []  # per step, a bit for each step that surely ended earlier
    seen: list[tuple[int, Any, int, int, bool]] = []
    for number, step in enumerate(steps):
        mask = 0
        for earlier in step[7]:
            assert earlier < number
            mask |= before[earlier] | 1 << earlier
        before.append(mask)
        for where, begin, end, writes in regions(step, in_place):
            assert where[0] != 2 or end <= scratch
            for other, there, low, high, wrote in seen:
                if there == where and low < end and begin < high and (writes or wrote):
                    ordered = other == number or mask >> other & 1
                    assert ordered, f"steps {other} and {number} meet in {where}"
            seen.append((number, where, begin, end, writes))


@pytest.mark.parametrize("kind", ["all_reduce", "reduce", "reduce_scatter", "broadcast"])
def test_scratch_memory_and_steps_are_bounded(native: ModuleType, kind: str) -> None:
    gigabyte = 1 << 30
    for size in (2, 4, 64):
        pieces = [gigabyte // size] * size if kind == "reduce_scatter" else [gigabyte]
        outputs = [gigabyte // size] if kind == "reduce_scatter" else [gigabyte]
        inputs = [] if kind == "broadcast" else pieces
        if kind == "reduce":
            outputs = []
        what = (KINDS.index(kind), 0, DTYPES.index(torch.float32), 0)
        scratch, steps = native.plan(what, 1, size, inputs, outputs, LARGE)
        assert scratch <= 4 << 20
        assert len(steps) < 40_000


@settings(max_examples=150)
@given(
    kind=st.sampled_from([k for k in KINDS if k != "barrier"]),
    size=st.integers(2, 6),
    tuning=st.sampled_from(TUNINGS),
    before=st.integers(0, 200),
    seed=st.integers(0, 2**32),
)
def test_a_lost_rank_ends_every_rank_with_an_error_that_names_it(
    native: ModuleType, kind: str, size: int, tuning: tuple[int, ...], before: int, seed: int
) -> None:
    world = native.World(size, tuning, seed)
    dead = seed % size
    first, second = (make_call(kind, size, 500, seed + n) for n in range(2))
    for rank in range(size):
        first.start(world, rank, 1, SECOND)
    world.run(before)
    world.kill(dead)
    finish(world)
    for rank in range(size):
        if rank != dead:
            second.start(world, rank, 2, SECOND)
    barrier = make_call("barrier", size, 0, seed)
    for rank in range(size):
        if rank != dead:
            barrier.start(world, rank, 3, SECOND)
    finish(world)
    for rank in set(range(size)) - {dead}:
        for call in (first, second, barrier):
            code, text, ends = world.result(call.numbers[rank])
            assert ends == 1, (call.kind, rank)
            assert code in (OK, PEER_LOST)
            assert code == OK or f"rank {dead} is lost" in text
        # Who needs everybody cannot have succeeded without the dead one.
        assert world.result(barrier.numbers[rank])[0] == PEER_LOST
    world.expire(2 * SECOND)  # A message that nobody takes any more stays until its time is over.
    finish(world)
    assert world.open_messages() == 0
    for call in (first, second):
        held = [[t.clone() for t in row] for row in call.outputs]
        finish(world)
        assert all(
            torch.equal(a, b)
            for rows in zip(call.outputs, held, strict=True)
            for a, b in zip(*rows, strict=True)
        )


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_timeout_names_the_ranks_that_did_not_come(
    native: ModuleType, tuning: tuple[int, ...], seed: int
) -> None:
    world = native.World(3, tuning, seed)
    call = make_call("all_reduce", 3, 100, seed)
    for rank in (0, 1):
        call.start(world, rank, 1, 2 * SECOND)
    finish(world)
    world.expire(1 + 2 * SECOND)
    finish(world)
    texts = [world.result(call.numbers[rank]) for rank in (0, 1)]
    assert [(code, ends) for code, _, ends in texts] == [(TIMEOUT, 1)] * 2
    assert any("timed out after 2.000 s, waiting for rank" in text for _, text, _ in texts)
    assert any("2" in text.partition("waiting for rank")[2] for _, text, _ in texts)
    assert world.open_messages() == 0


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["all_reduce", "broadcast", "all_gather", "all_to_all"]),
    before=st.integers(0, 60),
    how=st.sampled_from(["cancel", "abort", "remove"]),
    tuning=st.sampled_from(TUNINGS),
    seed=st.integers(0, 2**32),
)
def test_who_cancels_has_his_memory_back(
    native: ModuleType, kind: str, before: int, how: str, tuning: tuple[int, ...], seed: int
) -> None:
    world = native.World(3, tuning, seed)
    call = make_call(kind, 3, 200, seed)
    for rank in range(3):
        call.start(world, rank, 1, SECOND)
    world.run(before)
    for rank in range(3):
        if how == "cancel":
            world.cancel(call.numbers[rank])
        elif how == "abort":
            world.abort(rank, "the user said stop")
        else:
            world.remove_group(rank)
    finish(world)
    for rank in range(3):
        code, text, ends = world.result(call.numbers[rank])
        assert ends == 1
        assert code in (OK, CANCELLED), text
    if how != "abort":  # A message that nobody takes any more stays until its time is over.
        world.expire(2 * SECOND)
        finish(world)
    assert world.open_messages() == 0
    if how != "cancel":
        again = make_call("barrier", 3, 0, seed)
        again.start(world, 0, 9)
        code, text, _ = world.result(again.numbers[0])
        assert (code, text) == {
            "abort": (CANCELLED, "the user said stop"),
            "remove": (FAILED, "the process group was destroyed"),
        }[how]


def test_ranks_that_disagree_on_sizes_get_an_error(native: ModuleType, seed: int) -> None:
    for tuning in TUNINGS:
        world = native.World(2, tuning, seed)
        calls = [make_call("all_reduce", 2, count, seed) for count in (50, 60)]
        for rank in range(2):
            calls[rank].start(world, rank, 1, SECOND)
        finish(world)
        world.expire(2 * SECOND)
        finish(world)
        codes = [world.result(calls[rank].numbers[rank])[0] for rank in range(2)]
        assert set(codes) <= {MISMATCH, TIMEOUT}
        assert MISMATCH in codes


def test_a_sender_does_not_run_ahead_without_bound(native: ModuleType, seed: int) -> None:
    """Small broadcasts end at the root at once, but only so many of them."""
    world = native.World(2, LARGE, 3)
    done = 0
    made = []
    for tag in range(200):
        call = make_call("broadcast", 2, 10, seed)
        call.root = 0
        call.inputs = [[torch.arange(10, dtype=torch.int32)], []]
        call.outputs = [[], [torch.zeros(10, dtype=torch.int32)]]
        call.start(world, 0, tag)
        made.append(call)
    finish(world)
    done = sum(world.result(call.numbers[0])[2] for call in made)
    assert done >= 64
    assert world.lingering(0) <= 64
    for tag, call in enumerate(made):
        call.start(world, 1, tag)
    finish(world)
    assert all(torch.equal(call.outputs[1][0], call.inputs[0][0]) for call in made)
    assert all(world.result(n) == (OK, "", 1) for call in made for n in call.numbers)


@pytest.mark.parametrize(
    ("kind", "op", "dtype", "root", "inputs", "outputs", "why"),
    [
        ("all_reduce", "BAND", torch.float32, 0, [4], [4], "Cannot use ReduceOp.BAND"),
        ("all_reduce", "MAX", torch.complex64, 0, [8], [8], "have no order"),
        ("all_reduce", "SUM", torch.float32, 0, [4], [8], "they must be equal"),
        ("all_reduce", "SUM", torch.float32, 0, [6], [6], "no whole number of float32"),
        ("all_reduce", "SUM", torch.float32, 0, [4, 4], [4], "needs 1 input and 1 output"),
        ("all_gather", "SUM", torch.float32, 0, [4], [4], "needs 1 input and 3 output"),
        ("all_gather", "SUM", torch.float32, 0, [4], [8, 4, 4], "they must be equal"),
        ("broadcast", "SUM", torch.float32, 3, [4], [], "invalid root rank: 3"),
        ("scatter", "SUM", torch.float32, 0, [4, 4], [4], "needs 3 input"),
    ],
)
def test_impossible_calls_are_refused(
    native: ModuleType, kind: str, op: str, dtype: torch.dtype, root: int,
    inputs: list[int], outputs: list[int], why: str,
) -> None:  # fmt: skip
    what = (KINDS.index(kind), OPS.index(op), DTYPES.index(dtype), root)
    reason = native.plan(what, 0, 3, inputs, outputs, LARGE)
    assert why in reason
    assert reason.startswith(kind)
    world = native.World(3, LARGE, 1)
    number = world.start(0, what, [(64, n) for n in inputs], [(64, n) for n in outputs], 1, -1)
    assert world.result(number) == (FAILED, reason, 1)
    assert world.open_messages() == 0
