"""Stage: tests. Collectives that fail: ranks that die, come late, give up, or disagree."""

from __future__ import annotations

import random
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collective_calls import (
    CANCELLED,
    FAILED,
    LARGE,
    MISMATCH,
    OK,
    PEER_LOST,
    SECOND,
    TIMEOUT,
    TUNINGS,
    finish,
    make_call,
)  # fmt: skip
from tests.native_modules import native_module
from tests.reductions import KINDS

# The first test compiles the native module, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def native() -> ModuleType:
    return native_module("collectives_world", ["collectives/*.cpp"])


@settings(max_examples=150)
@given(
    kind=st.sampled_from([k for k in KINDS if k != "barrier"]),
    size=st.integers(2, 6),
    tuning=st.sampled_from(TUNINGS),
    before=st.integers(0, 200),
    seed=st.integers(0, 2**32),
    on_gpu=st.booleans(),
)
def test_a_lost_rank_ends_every_rank_with_an_error_that_names_it(
    native: ModuleType,
    kind: str,
    size: int,
    tuning: tuple[int, ...],
    before: int,
    seed: int,
    on_gpu: bool,
) -> None:
    world = native.World(size, tuning, seed)
    if on_gpu:
        world.compute_elsewhere()
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
    first, call = (make_call(kind, 3, 100, seed) for kind in ("barrier", "all_reduce"))
    for rank in range(3):
        first.start(world, rank, 1, 2 * SECOND)
    finish(world)
    for rank in (0, 1):
        call.start(world, rank, 2, 2 * SECOND)
    finish(world)
    world.expire(1 + 2 * SECOND)
    finish(world)
    texts = [world.result(call.numbers[rank]) for rank in (0, 1)]
    assert [(code, ends) for code, _, ends in texts] == [(TIMEOUT, 1)] * 2
    assert any("Timed out after 2.000 s, waiting for rank" in text for _, text, _ in texts)
    assert any("2" in text.partition("waiting for rank")[2] for _, text, _ in texts)
    # It is only late.
    assert all(text.endswith("; the engines of all ranks answer") for _, text, _ in texts)
    assert world.open_messages() == 0


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "broadcast", "barrier"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_timeout_names_the_ranks_that_are_stopped(
    native: ModuleType, tuning: tuple[int, ...], kind: str, seed: int
) -> None:
    size = 5
    draw = random.Random(seed)
    stopped = sorted(draw.sample(range(size), draw.choice([1, 2])))
    others = [rank for rank in range(size) if rank not in stopped]
    world = native.World(size, tuning, seed)
    first, call, after = (make_call(k, size, 300, seed) for k in ("barrier", kind, "barrier"))
    for rank in range(size):
        first.start(world, rank, 1)
    finish(world)
    for rank in range(size):
        call.start(world, rank, 2, SECOND)
    world.run(draw.randrange(30))
    for rank in stopped:
        world.stop(rank)
    finish(world)
    for rank in others:  # Some may have come to their end before; nobody comes through this one.
        after.start(world, rank, 3, SECOND)
    finish(world)
    for passed in (SECOND, 2 * SECOND):  # Then nobody answers the question, either.
        world.expire(2 + passed)
        finish(world)
    named = f"; no answer from rank{'s' if len(stopped) > 1 else ''} {', '.join(map(str, stopped))}"
    for rank in others:
        code, text, ends = world.result(after.numbers[rank])
        assert (code, ends) == (TIMEOUT, 1)
        assert text.endswith(named), text
        code, text, ends = world.result(call.numbers[rank])
        assert ends == 1
        assert code == OK or (code == TIMEOUT and text.endswith(named)), text


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_silent_are_known_at_the_timeout(
    native: ModuleType, tuning: tuple[int, ...], seed: int
) -> None:
    """Many collectives, at different times: each asks in time, and none is late for the answers."""
    draw = random.Random(seed)
    world = native.World(4, tuning, seed)
    barrier = make_call("barrier", 4, 0, seed)
    for rank in range(4):
        barrier.start(world, rank, 1)
    finish(world)
    world.stop(3)
    calls, ends, now = [], [], 0
    for tag in range(2, 20):
        now += draw.randrange(SECOND // 4)  # The first has not timed out when the last begins.
        world.expire(now)
        finish(world)
        timeout = draw.randrange(5 * SECOND, 20 * SECOND)
        calls.append(make_call("all_reduce", 4, 100, seed + tag))
        ends.append(now + timeout)
        for rank in range(3):
            calls[-1].start(world, rank, tag, timeout)
    for index in sorted(range(len(calls)), key=ends.__getitem__):
        for late, code in ((-1, -1), (0, TIMEOUT)):
            world.expire(ends[index] + late)
            finish(world)
            for rank in range(3):
                got, text, times = world.result(calls[index].numbers[rank])
                assert (got, times) == (code, late + 1), (index, late, text)
                assert late < 0 or text.endswith("; no answer from rank 3"), text
    world.expire(now + 60 * SECOND)
    finish(world)
    assert world.open_messages() == 0


@pytest.mark.parametrize("how", ["abort", "remove"])
def test_who_gives_up_does_not_wait_for_the_answers(
    native: ModuleType, how: str, seed: int
) -> None:
    world = native.World(3, LARGE, seed)
    call = make_call("barrier", 3, 0, seed)
    for rank in (0, 1):
        call.start(world, rank, 1, SECOND)
    world.stop(2)
    finish(world)
    world.expire(SECOND + SECOND // 4)  # They were asked after half of it, and may still answer.
    finish(world)
    assert [world.result(call.numbers[rank])[2] for rank in (0, 1)] == [0, 0]
    for rank in (0, 1):
        world.abort(rank, "stop") if how == "abort" else world.remove_group(rank)
        code, text, ends = world.result(call.numbers[rank])
        assert (code, ends) == (TIMEOUT, 1)
        assert "no answer from rank" in text
    world.expire(20 * SECOND)
    finish(world)
    assert world.open_messages() == 0


def test_the_longest_timeout_is_no_timeout(native: ModuleType, seed: int) -> None:
    world = native.World(2, LARGE, seed)
    call = make_call("all_reduce", 2, 10, seed)
    for rank in range(2):
        call.start(world, rank, 1, 2**63 - 1)
    world.expire(2**62)
    finish(world)
    call.check(world)


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


@pytest.mark.parametrize("tuning", TUNINGS)
def test_on_a_gpu_nothing_begins_before_the_callers_stream_has_come_so_far(
    native: ModuleType, tuning: tuple[int, ...], seed: int
) -> None:
    world = native.World(2, tuning, seed)
    world.compute_elsewhere()
    call = make_call("all_reduce", 2, 1000, seed)
    world.hold_streams(True)
    call.start(world, 0, 1, SECOND)
    world.run(100)
    assert world.result(call.numbers[0])[2] == 0
    assert world.open_messages() == 0
    world.hold_streams(False)
    call.start(world, 1, 1, SECOND)
    finish(world)
    call.check(world)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_stream_that_does_not_go_on_times_out_and_may_still_come(
    native: ModuleType, tuning: tuple[int, ...], seed: int
) -> None:
    world = native.World(2, tuning, seed)
    world.compute_elsewhere()
    call, after = (make_call("all_reduce", 2, 1000, seed + n) for n in range(2))
    world.hold_streams(True)
    call.start(world, 0, 1, SECOND)
    world.expire(2 * SECOND)
    code, text, ends = world.result(call.numbers[0])
    assert (code, ends) == (TIMEOUT, 1)
    assert "queued on the GPU's stream before the call" in text
    assert world.lingering(0) == 1  # Until the stream has come, or the driver says it never will.
    world.hold_streams(False)
    finish(world)
    assert world.lingering(0) == 0
    for rank in range(2):
        after.start(world, rank, 2, SECOND)
    finish(world)
    after.check(world)


@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter"])
def test_what_a_gpu_computes_keeps_a_cancelled_call_from_ending(
    native: ModuleType, kind: str, seed: int
) -> None:
    """The GPU may still write to the caller's memory."""
    for steps in range(12):
        world = native.World(2, LARGE, seed + steps)
        world.compute_elsewhere()
        call = make_call(kind, 2, 1000, seed)
        for rank in range(2):
            call.start(world, rank, 1, SECOND)
        world.run(steps)
        world.cancel(call.numbers[0])
        world.cancel(call.numbers[1])
        while any(world.result(number)[2] == 0 for number in call.numbers):
            assert world.step()
        held = [[t.clone() for t in row] for row in call.outputs]
        finish(world)
        for rows in zip(call.outputs, held, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True))
