"""Segments: who may touch which bytes. Whatever a target says, nothing outside is ever reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tent._simulator import Segments, Target

OK, ACCESS = 0, 3
KEY = 0x1234567890ABCDEF
PLANES = [(0x10000, 4096), (0x90000, 4096)]
BLOCKS = 8
BLOCK_BYTES = 4096 // BLOCKS

numbers = st.one_of(st.integers(0, 5000), st.integers(0, 2**64 - 1))
strides = st.one_of(st.integers(-5000, 5000), st.integers(-(2**63), 2**63 - 1))
dims = st.lists(st.tuples(st.one_of(st.integers(0, 9), numbers), strides), max_size=3)


@st.composite
def wild_parts(draw: st.DrawFn) -> tuple:
    grid = draw(dims)
    blocks = None
    if grid and draw(st.booleans()):
        blocks = draw(st.lists(st.one_of(st.integers(-2, 9), strides), max_size=5))
        grid[0] = (len(blocks), draw(st.sampled_from([BLOCK_BYTES, 1, grid[0][1]])))
    return (draw(numbers), draw(st.integers(0, 3)), draw(numbers), grid, blocks)


def bounds(part: tuple) -> tuple[int, int]:
    """Lowest and one past the highest byte, in unbounded integers."""
    base, _, piece, grid, blocks = part
    low = high = base
    for i, (count, stride) in enumerate(grid):
        indices = blocks if i == 0 and blocks is not None else [0, count - 1]
        ends = [index * stride for index in (min(indices), max(indices))]
        low, high = low + min(ends), high + max(ends)
    return low, high + piece


def is_empty(part: tuple) -> bool:
    return part[2] == 0 or any(count == 0 for count, _ in part[3])


@given(st.lists(wild_parts(), max_size=3), st.booleans())
def test_nothing_outside_of_a_plane_is_ever_reached(parts: list, write: bool) -> None:
    segments = Segments()
    segment = segments.add(PLANES, True, True, 0, KEY)
    code, _, layout = segments.resolve(Target(segment, KEY, 0, parts), write)
    if code != OK:
        assert layout is None
        return
    assert layout is not None
    for given_part, part in zip(parts, layout.parts, strict=True):
        base, size = PLANES[given_part[1]]
        assert part[0] == (base + given_part[0]) % 2**64
        if not is_empty(given_part):
            low, high = bounds(given_part)
            assert low >= 0
            assert high <= size


@given(st.lists(wild_parts(), max_size=3), st.sets(st.integers(0, BLOCKS - 1)))
def test_a_revoked_block_is_never_reached(parts: list, revoked: set[int]) -> None:
    segments = Segments()
    segment = segments.add(PLANES, True, True, BLOCKS, KEY)
    before = segments.epoch(segment)
    after = segments.revoke(segment, sorted(revoked))
    for epoch, closed in ((before, revoked), (after, set())):
        code, _, layout = segments.resolve(Target(segment, KEY, epoch, parts), False)
        if code != OK:
            continue
        assert layout is not None
        for base, _, piece, grid, blocks in parts:
            assert blocks is not None
            assert not closed & set(blocks)
            assert all(0 <= block < BLOCKS for block in blocks)
            inner = (base, 0, piece, grid[1:], None)
            if not is_empty(inner):
                low, high = bounds(inner)  # each piece stays inside its block
                assert low >= 0
                assert high <= BLOCK_BYTES


@given(st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=8), st.booleans())
def test_blocks_of_a_live_ticket_are_reached(blocks: list[int], write: bool) -> None:
    segments = Segments()
    segment = segments.add(PLANES, True, True, BLOCKS, KEY)
    parts = [
        (0, plane, BLOCK_BYTES, [(len(blocks), BLOCK_BYTES)], blocks)
        for plane in range(len(PLANES))
    ]
    code, why, layout = segments.resolve(Target(segment, KEY, 0, parts), write)
    assert (code, why) == (OK, "")
    assert layout is not None
    expected = [base + block * BLOCK_BYTES for base, _ in PLANES for block in blocks]
    at = [layout.pieces(i * BLOCK_BYTES, BLOCK_BYTES)[0][0] for i in range(2 * len(blocks))]
    assert at == expected


INSIDE = [(16, 0, 64, [], None)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": KEY ^ 1}, "stale"),
        ({"key": 0}, "stale"),
        ({"segment": 99}, "stale"),
        ({"parts": [(0, 2, 1, [], None)]}, "plane"),
        ({"parts": [(4096, 0, 1, [], None)]}, "bounds"),
        ({"parts": [(4095, 0, 2, [], None)]}, "bounds"),
        ({"parts": [(0, 0, 4097, [], None)]}, "bounds"),
        ({"parts": [(2**64 - 1, 0, 2, [], None)]}, "bounds"),
        ({"parts": [(0, 0, 1, [(2, -1)], None)]}, "bounds"),
        ({"parts": [(16, 0, 2**63, [], None)]}, "bounds"),
        ({"parts": [(0, 0, 8, [(2**63, 8)], None)]}, "bounds"),
        ({"parts": [(0, 0, 8, [(2**32, 2**32)], None)]}, "bounds"),
    ],
)
def test_a_wrong_target_is_refused_with_a_reason(change: dict, reason: str) -> None:
    segments = Segments()
    segment = segments.add(PLANES, True, True, 0, KEY)
    target = {"segment": segment, "key": KEY, "epoch": 0, "parts": INSIDE}
    assert segments.resolve(Target(**target), True)[0] == OK
    code, why, layout = segments.resolve(Target(**(target | change)), True)
    assert code == ACCESS
    assert layout is None
    assert reason in why


def test_rights_are_checked_and_a_closed_segment_is_gone() -> None:
    segments = Segments()
    read_only = segments.add(PLANES, True, False, 0, KEY)
    write_only = segments.add(PLANES, False, True, 0, KEY)
    for segment, write in ((read_only, False), (write_only, True)):
        target = Target(segment, KEY, 0, INSIDE)
        assert segments.resolve(target, write)[0] == OK
        code, why, _ = segments.resolve(target, not write)
        assert code == ACCESS
        assert "may not be" in why
        assert segments.remove(segment)
        assert not segments.remove(segment)
        assert segments.resolve(target, write)[0] == ACCESS
    # Its number is never given to another one.
    assert segments.add(PLANES, True, True, 0, KEY) not in (read_only, write_only)
