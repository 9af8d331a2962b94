"""Stage: tests. Every algorithm of csrc/collectives for 1 to 9 ranks, run by the real executor in
one process, on a network that delivers in any order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collective_calls import FAILED, LARGE, SMALL, TUNINGS, Call, finish, make_call
from tests.native_modules import native_module
from tests.reductions import DTYPES, KINDS, OPS, is_defined, reduced

# The first test compiles the native module, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def native() -> ModuleType:
    return native_module("collectives_world", ["collectives/*.cpp"])


@st.composite
def calls(draw: Any) -> tuple[int, list[Call], tuple[int, ...], int, bool]:
    size = draw(st.integers(1, 9))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(KINDS))
        dtype = draw(st.sampled_from(DTYPES))
        op = draw(st.sampled_from([op for op in OPS if is_defined(op, dtype)]))
        count = draw(st.sampled_from([0, 1, 2, 5, 17, 64, 257, 1001]))
        seed = draw(st.integers(0, 2**32))
        made.append(make_call(kind, size, count, seed, op, dtype, draw(st.booleans())))
    tuning, seed = draw(st.sampled_from(TUNINGS)), draw(st.integers(0, 2**63))
    return size, made, tuning, seed, draw(st.booleans())


@settings(max_examples=300)
@given(calls())
def test_collectives_are_right_in_any_order_of_delivery(
    native: ModuleType, drawn: tuple[int, list[Call], tuple[int, ...], int, bool]
) -> None:
    """On GPUs, too, where somebody else computes."""
    size, made, tuning, seed, on_gpu = drawn
    world = native.World(size, tuning, seed)
    if on_gpu:
        world.compute_elsewhere()
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
