"""Layouts: which memory the line of bytes of a transfer is, against a plain enumeration of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tent._simulator import Layout

Part = tuple[int, int, int, list[tuple[int, int]], list[int] | None]
BASE = 1 << 20


@st.composite
def parts(draw: st.DrawFn) -> Part:
    dims = draw(
        st.lists(st.tuples(st.integers(0, 5), st.integers(-40, 40)), max_size=3),
    )
    blocks = None
    if dims and draw(st.booleans()):
        blocks = draw(st.lists(st.integers(0, 30), max_size=6))
        dims[0] = (len(blocks), dims[0][1])
    base = BASE + draw(st.integers(0, 1000))
    return (base, draw(st.integers(0, 3)), draw(st.integers(0, 20)), dims, blocks)


def line(part: Part) -> list[int]:
    """The address of every byte of a part, in order."""
    base, _, piece_bytes, dims, blocks = part
    ranges = [range(count) for count, _ in dims]
    if blocks is not None:
        ranges[0] = blocks  # type: ignore[call-overload]
    return [
        base + sum(i * stride for i, (_, stride) in zip(index, dims, strict=True)) + byte
        for index in itertools.product(*ranges)
        for byte in range(piece_bytes)
    ]


@given(st.lists(parts(), max_size=4), st.data())
def test_any_stretch_of_the_line_is_the_memory_it_names(all_parts: list[Part], data: st.DataObject):
    layout = Layout(all_parts)
    expected = [address for part in all_parts for address in line(part)]
    assert layout.bytes == len(expected)
    offset = data.draw(st.integers(0, layout.bytes))
    length = data.draw(st.integers(0, layout.bytes - offset))
    pieces = layout.pieces(offset, length)
    flat = [address + i for address, size in pieces for i in range(size)]
    assert flat == expected[offset : offset + length]
    assert all(size > 0 for _, size in pieces)
    # Neighbours are merged: no piece begins where the one before it ended.
    assert all(a + n != b for (a, n), (b, _) in itertools.pairwise(pieces))


@given(parts())
def test_the_extent_is_the_lowest_and_the_highest_byte(part: Part):
    low, high = Layout([part]).extents()[0] or (None, None)
    addresses = line(part)
    assert low is not None
    if addresses:
        assert (low, high) == (min(addresses) - part[0], max(addresses) + 1 - part[0])


huge = st.integers(2**60, 2**64 - 1)


@given(
    st.integers(0, 2**64 - 1), huge, st.lists(st.tuples(huge, st.just(1)), min_size=1, max_size=3)
)
def test_what_does_not_fit_in_63_bits_has_no_extent(base: int, piece: int, dims: list) -> None:
    assert Layout([(base, 0, piece, dims, None)]).extents() == [None]


def test_strides_that_overflow_have_no_extent() -> None:
    far = 2**62
    assert Layout([(0, 0, 1, [(3, far)], None)]).extents() == [None]
    assert Layout([(0, 0, 1, [(3, -far)], None)]).extents() == [(-(2**63), 1)]
    assert Layout([(0, 0, 1, [(4, -far)], None)]).extents() == [None]
    assert Layout([(0, 0, 8, [(1, far)], [2**40])]).extents() == [None]
    assert Layout([(0, 0, 8, [(1, 2**10)], [2**40])]).extents() == [(2**50, 2**50 + 8)]


def test_empty_parts_between_others_are_stepped_over() -> None:
    whole = (BASE, 0, 4, [], None)
    for empty in ((BASE, 0, 0, [(2, 1)], None), (BASE, 0, 4, [(0, 1)], None)):
        layout = Layout([empty, whole, empty, (BASE + 8, 0, 4, [(1, 0)], None), empty])
        assert layout.pieces(0, 8) == [(BASE, 4), (BASE + 8, 4)]


def test_a_million_blocks_stay_compact() -> None:
    count = 1_000_000
    layout = Layout([(0, 0, 512, [(count, 512)], list(range(count - 1, -1, -1)))])
    assert layout.bytes == 512 * count
    assert layout.pieces(512 * 10, 1024) == [(512 * (count - 11), 512), (512 * (count - 12), 512)]


def test_a_stretch_outside_is_refused() -> None:
    layout = Layout([(0, 0, 10, [], None)])
    with pytest.raises(ValueError, match="out of the layout"):
        layout.pieces(5, 6)
