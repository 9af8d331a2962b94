"""Stage: kernels. Many pieces of memory, each from its own place to its own place, in one launch.

The engine launches it (csrc/device/rows.h) when a slice has many small pieces: it reads and writes
the GPU's memory, page-locked host memory and opened memory of other processes alike, so it gathers
and scatters without a staging area. `rows_ptx.py` compiles it into the engine. What always holds:
the result is that of `move_rows_reference`; nothing but the rows' targets is written.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import triton
import triton.language as tl

ROW_WORDS_MAX = 2048  # of 8 bytes: 16 KiB
WARPS = 8


@triton.jit
def move_rows(table, rows, size: tl.constexpr):
    """`table`: int64 [rows, 3]: source, target, 8-byte words. All three are multiples of 16 bytes,
    and a row has at most `size` words; no target overlaps another one or a source."""
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        entry = table + row * 3
        source = tl.load(entry).to(tl.pointer_type(tl.int64))
        target = tl.load(entry + 1).to(tl.pointer_type(tl.int64))
        words = tl.multiple_of(tl.load(entry + 2), 2)
        number = tl.max_contiguous(tl.multiple_of(tl.arange(0, size), 2), 2)
        inside = number < words
        found = tl.load(tl.multiple_of(source, 16) + number, mask=inside)
        tl.store(tl.multiple_of(target, 16) + number, found, mask=inside)


def launch(table: torch.Tensor, programs: int) -> None:
    """Moves the rows of an int64 table [rows, 3], as the engine does it."""
    kernel: Any = move_rows
    kernel[(programs,)](table, len(table), size=ROW_WORDS_MAX, num_warps=WARPS)


def move_rows_reference(table: torch.Tensor) -> None:
    """What `launch` does, for rows in the host's memory."""
    for source, target, words in table.tolist():
        ctypes.memmove(target, source, 8 * words)
