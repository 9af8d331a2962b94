"""The slicer and the interval set: every byte is cut once, and counted once."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from torch_tent._simulator import IntervalSet, Slicer


class Slicing(RuleBasedStateMachine):
    """Slices go out, some come back lost, until all bytes have landed: none lost, none doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 250_000  # more than one run of the machine can take
        self.slicer = Slicer(self.bytes)
        self.out: list[tuple[int, int]] = []
        self.landed: list[tuple[int, int]] = []
        self.cut: set[tuple[int, int]] = set()

    @precondition(lambda self: self.slicer.left > 0)
    @rule(wanted=st.integers(1, 4000))
    def take(self, wanted: int) -> None:
        offset, length = self.slicer.next(wanted)
        assert length > 0
        assert offset + length <= self.bytes
        self.cut.add((offset, length))
        self.out.append((offset, length))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 1000))
    def lose(self, which: int) -> None:
        lost = self.out.pop(which % len(self.out))
        self.slicer.give_back(*lost)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 1000))
    def land(self, which: int) -> None:
        self.landed.append(self.out.pop(which % len(self.out)))

    @invariant()
    def every_byte_is_in_one_place(self) -> None:
        spans = sorted(self.out + self.landed)
        assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))
        assert sum(length for _, length in spans) + self.slicer.left == self.bytes

    @invariant()
    def a_slice_keeps_its_bounds(self) -> None:
        spans = sorted(self.cut)
        assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))

    def teardown(self) -> None:
        while self.slicer.left:
            self.take(4000)
        ends = 0
        for offset, length in sorted(self.out + self.landed):
            assert offset == ends
            ends += length
        assert ends == self.bytes


TestSlicing = Slicing.TestCase


@given(st.integers(1, 100_000), st.integers(1, 5000))
def test_no_slice_is_a_crumb(size: int, wanted: int) -> None:
    slicer = Slicer(size)
    lengths = []
    while slicer.left:
        lengths.append(slicer.next(wanted)[1])
    assert sum(lengths) == size
    cut = wanted if wanted <= 256 else wanted - wanted % 256  # Cuts lie at multiples of it.
    assert all(length == cut for length in lengths[:-1])
    assert lengths[-1] <= cut * 5 // 4
    if len(lengths) > 1:
        assert lengths[-1] * 4 > cut


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=40))
def test_an_interval_set_counts_distinct_members(added: list[tuple[int, int]]) -> None:
    intervals, members = IntervalSet(), set[int]()
    for begin, length in added:
        new = set(range(begin, begin + length))
        if not new:
            continue
        assert intervals.add(begin, begin + length) == len(new - members)
        members |= new
    assert intervals.count == len(members)
    runs = sum(1 for member in members if member - 1 not in members)
    assert intervals.intervals == runs  # neighbours are one interval
    for begin in range(0, 260, 7):
        for end in range(begin + 1, min(begin + 20, 260)):
            assert intervals.contains(begin, end) == (set(range(begin, end)) <= members)
