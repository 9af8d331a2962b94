"""What a link is expected to do: learned from deliveries alone, over a simulated link."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_tent._simulator import PostStamp, RailEstimate

US, MS, S = 1_000, 1_000_000, 1_000_000_000
KIB = 1 << 10


class Wire:
    """A link of `rate` bytes per ns and `base` ns: frames leave one after another."""

    def __init__(self, rate: float, base: int, estimate: RailEstimate | None = None) -> None:
        self.rate, self.base = rate, base
        self.estimate = estimate or RailEstimate()
        self.free_at = 0.0
        self.now = 0
        self.flying: deque[tuple[int, int, PostStamp]] = deque()

    def post(self, size: int) -> PostStamp:
        self.free_at = max(self.free_at, float(self.now)) + size / self.rate
        stamp = self.estimate.posted(size, self.now)
        self.flying.append((int(self.free_at) + self.base, size, stamp))
        return stamp

    def ack(self) -> None:
        when, size, stamp = self.flying.popleft()
        self.now = max(self.now, when)
        self.estimate.acked(stamp, size, self.now)

    def send(self, total: int, window: int = 0) -> None:
        """Sends `total` bytes as a session would: whenever the window has room."""
        while total > 0 or self.flying:
            while total > 0 and (
                self.estimate.in_flight < window if window else self.estimate.has_room
            ):
                size = min(total, self.estimate.slice_bytes)
                self.post(size)
                total -= size
            self.ack()


rates = st.floats(0.002, 12.0)  # 16 Mbit/s to 100 Gbit/s
bases = st.integers(2 * US, 20 * MS)


@settings(max_examples=60)
@given(rates, bases, st.sampled_from([0.0, 0.01, 50.0]))
def test_it_converges_to_the_true_rate_and_latency(rate: float, base: int, hint: float) -> None:
    wire = Wire(rate, base, RailEstimate(rate_hint=hint))
    wire.send(int(rate * (100 * MS + 20 * base)))
    assert wire.estimate.rate == pytest.approx(rate, rel=0.1)
    assert base * 0.9 - US <= wire.estimate.base_latency <= base * 1.1 + 20 * US


@settings(max_examples=60)
@given(rates, bases, st.integers(1, 64))
def test_queueing_is_not_counted(rate: float, base: int, depth: int) -> None:
    """However deep the queue in front of the link is, the rate stays the link's."""
    wire = Wire(rate, base)
    wire.send(int(rate * 50 * MS), window=depth * 64 * KIB)
    assert wire.estimate.rate <= rate * 1.05
    if depth * 64 * KIB > 2 * rate * base:
        assert wire.estimate.rate >= rate * 0.8


@settings(max_examples=60)
@given(rates, bases)
def test_a_window_keeps_the_link_busy_without_a_long_queue(rate: float, base: int) -> None:
    wire = Wire(rate, base)
    wire.send(int(rate * (100 * MS + 20 * base)))
    assert wire.estimate.window >= 0.9 * rate * base
    assert wire.estimate.window <= rate * (1.7 * base + 6 * MS) + 64 * KIB


@given(rates, bases, st.lists(st.integers(1, 1 << 20), max_size=20))
def test_nothing_is_learned_from_what_was_lost(rate: float, base: int, lost: list[int]) -> None:
    wire = Wire(rate, base)
    wire.send(int(rate * 20 * MS))
    estimate = wire.estimate
    before = (estimate.rate, estimate.base_latency)
    for size in lost:
        estimate.posted(size, wire.now + S)
    for size in lost:
        estimate.lost(size)
    assert (estimate.rate, estimate.base_latency) == before
    assert estimate.in_flight == 0


def test_a_long_path_does_not_keep_the_window_small() -> None:
    wire = Wire(1.0, 100 * MS)  # 100 MB are under way when it is busy
    wire.send(1 << 30)
    assert wire.estimate.rate == pytest.approx(1.0, rel=0.05)
    assert wire.now < 4 * S


def test_it_follows_a_link_that_turns_slow_and_one_that_recovers() -> None:
    wire = Wire(1.0, 50 * US)
    wire.send(50 << 20)
    wire.rate = 0.05
    wire.send(20 << 20)
    assert wire.estimate.rate == pytest.approx(0.05, rel=0.2)
    wire.rate = 1.0
    wire.send(200 << 20)
    assert wire.estimate.rate == pytest.approx(1.0, rel=0.2)


def test_small_answers_do_not_spoil_the_rate() -> None:
    wire = Wire(1.0, 50 * US)
    wire.send(50 << 20)
    for _ in range(2000):  # a quiet link with a ping now and then
        wire.post(64)
        wire.ack()
        wire.now += MS
    assert wire.estimate.rate == pytest.approx(1.0, rel=0.2)
    assert wire.estimate.base_latency == pytest.approx(50 * US, rel=0.2)


@given(rates, bases)
def test_slices_are_half_a_millisecond_of_work_within_bounds(rate: float, base: int) -> None:
    wire = Wire(rate, base)
    wire.send(int(rate * 200 * MS))
    size = wire.estimate.slice_bytes
    assert 16 * KIB <= size <= 4 << 20
    if 20 * KIB < rate * 0.5 * MS < 4 << 20:
        assert size == pytest.approx(rate * 0.5 * MS, rel=0.25)


@given(rates, bases)
def test_a_links_own_minimum_is_for_quick_links(rate: float, base: int) -> None:
    """A slice costs an RDMA link much, however long it is; but none takes more than 8 ms for it."""
    wire = Wire(rate, base, RailEstimate(link_slice_bytes_min=256 * KIB))
    assert wire.estimate.slice_bytes == 16 * KIB  # nothing long before anything is known
    assert wire.estimate.window == 64 * KIB
    wire.send(int(rate * 200 * MS))
    assert min(256 * KIB, int(rate * 4 * MS)) <= wire.estimate.slice_bytes
    assert wire.estimate.slice_bytes <= max(16 * KIB, rate * 10 * MS)


@given(rates, bases, st.integers(1, 30))
def test_a_slice_is_not_overdue_while_the_link_does_what_it_did(
    rate: float, base: int, more: int
) -> None:
    wire = Wire(rate, base)
    wire.send(int(rate * 50 * MS))
    stamps = [wire.post(wire.estimate.slice_bytes) for _ in range(more)]
    for stamp in stamps:
        wire.ack()
        assert wire.now < stamp.due


def test_a_new_link_starts_small_and_grows_with_what_it_delivers() -> None:
    estimate = RailEstimate(rate_hint=12.0)
    assert estimate.window <= 256 * KIB
    wire = Wire(12.0, 20 * US, estimate)
    wire.send(1 << 20)
    early = estimate.window
    wire.send(256 << 20)
    assert estimate.window > 4 * early


@given(st.floats(0, 100, allow_nan=False), st.lists(st.tuples(st.integers(1, 1 << 26),
       st.integers(0, 10 * S)), max_size=30))  # fmt: skip
def test_odd_times_never_make_it_useless(hint: float, frames: list[tuple[int, int]]) -> None:
    """Acknowledgements at the same instant, or after ages: rate, window and slice stay usable."""
    estimate, now = RailEstimate(rate_hint=hint), 0
    for size, later in frames:
        stamp = estimate.posted(size, now)
        now += later
        estimate.acked(stamp, size, now)
        assert estimate.rate > 0
        assert estimate.window >= 32 * KIB
        assert 16 * KIB <= estimate.slice_bytes <= 4 << 20
        assert estimate.eta(size) >= 0
        assert estimate.has_room
