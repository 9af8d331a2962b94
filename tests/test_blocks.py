"""Tests of torch_tent.blocks: index lists are checked, and mean what indexing means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.test_tensors import bytes_of
from torch_tent import blocks, segment

NINE = blocks.Blocks((), 9, "this cache")


@given(st.data())
def test_parts_are_the_bytes_of_the_blocks(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    memory = torch.arange(torch.Size([5, *shape]).numel() * 2, dtype=torch.int16)
    layer = memory.reshape(*reversed([5 * 2, *shape])).permute(*reversed(range(len(shape) + 1)))
    layer = layer[:: data.draw(st.integers(1, 2))]
    indices = np.array(data.draw(st.lists(st.integers(0, len(layer) - 1))), np.int64)
    layout = segment.tensor_layout(layer, 3)
    (part,) = blocks.Layer.of([layout], [layer.data_ptr()]).parts(indices)
    base, plane, piece_bytes, dims, given_blocks = part
    assert plane == 3
    assert given_blocks is indices
    places = list(bytes_of(base - memory.data_ptr(), piece_bytes, dims, indices.tolist()))
    found = memory.numpy().view(np.uint8)[places].view(np.int16)
    assert found.tolist() == layer[torch.from_numpy(indices)].flatten().tolist()


@pytest.mark.parametrize(
    "given_blocks",
    [
        [3, 1, 8],
        (3, 1, 8),
        torch.tensor([3, 1, 8]),
        torch.tensor([3, 1, 8], dtype=torch.uint8),
        torch.tensor([3, 0, 1, 0, 8, 0])[::2],
        np.array([3, 1, 8], np.uint64),
        np.array([8, 1, 3], np.int16)[::-1],
        [np.int32(3), 1, torch.tensor(8)],
    ],
)
def test_lists_of_all_kinds(given_blocks: Any) -> None:
    found = NINE.indices(given_blocks, "blocks", distinct=True)
    assert found.tolist() == [3, 1, 8]
    assert (found.dtype, found.flags.c_contiguous) == (np.int64, True)


def test_ranges_and_empty_lists() -> None:
    assert NINE.indices(range(8, 0, -3), "blocks", True).tolist() == [8, 5, 2]
    for empty in ([], (), range(0), torch.empty(0), np.empty(0, np.int32)):
        assert NINE.indices(empty, "blocks", True).shape == (0,)


@pytest.mark.parametrize(
    ("given_blocks", "error", "message"),
    [
        ([0, 9], IndexError, r"src\[1\] is 9: this cache has the blocks 0 to 8"),
        ([0, 4, -1], IndexError, r"src\[2\] is -1: this cache"),
        (np.array([1 << 63], np.uint64), IndexError, "beyond 64-bit"),
        ([1 << 70], (IndexError, TypeError), "src"),
        ([5, 4, 3, 4], ValueError, "src names block 4 twice, at 1 and 3"),
        ([0.5], TypeError, "float64: they must be integers"),
        ([True], TypeError, "bool: they must be integers"),
        (torch.tensor([1.0]), TypeError, "float32"),
        ("12", (TypeError, ValueError), "src"),
        ([[1, 2]], ValueError, "2 dimensions"),
        (3, ValueError, "0 dimensions"),
        (None, (TypeError, ValueError), "src"),
        (torch.empty(2, device="meta"), ValueError, "on meta"),
    ],
)
def test_bad_lists_are_named(given_blocks: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        NINE.indices(given_blocks, "src", distinct=True)


def test_a_source_block_may_come_twice() -> None:
    assert NINE.indices([4, 4], "src", distinct=False).tolist() == [4, 4]
