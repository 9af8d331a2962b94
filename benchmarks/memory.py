"""Stage: benchmarks, in a player. Memory whose page size is known, and patterns that show misplaced
bytes.

Called by the arms. What always holds: memory is touched before it is measured, and `pages_of` says
what the kernel really gave, not what was asked for.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

HUGE_PAGE = 2 << 20
_CHUNK_WORDS = 1 << 20
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio: words never repeat


def allocate(size: int, pages: str) -> np.ndarray[Any, Any]:
    """`size` bytes of private memory, on "huge" pages (2 MiB, advised) or "4k" ones."""
    whole_pages = -(-size // HUGE_PAGE) * HUGE_PAGE
    room = mmap.mmap(-1, whole_pages + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE if pages == "huge" else mmap.MADV_NOHUGEPAGE)
    whole: np.ndarray[Any, Any] = np.frombuffer(room, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    found = whole[start : start + size]
    found[:] = 0
    return found


def pages_of(memory: np.ndarray[Any, Any]) -> str:
    """ "2M", "4K" or a share between them, from /proc/self/smaps."""
    low, high = memory.ctypes.data, memory.ctypes.data + memory.nbytes
    resident = huge = 0
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            if "-" in name.split(" ")[0] and not rest.strip().endswith("kB"):
                begin, end = (int(part, 16) for part in line.split(" ")[0].split("-"))
                inside = begin < high and end > low
            elif inside and name == "Rss":
                resident += int(rest.split()[0])
            elif inside and name in ("AnonHugePages", "ShmemPmdMapped"):
                huge += int(rest.split()[0])
    if resident == 0 or huge <= 0.01 * resident:
        return "4K"
    return "2M" if huge >= 0.95 * resident else f"{100 * huge // resident} % 2M"


def fill(memory: np.ndarray[Any, Any], salt: int) -> None:
    """Writes a pattern that differs for each place and each salt."""
    for start, words in _chunks(memory, salt):
        end = min(start + words.nbytes, memory.nbytes)
        memory[start:end] = words.view(np.uint8)[: end - start]


def mismatch(memory: np.ndarray[Any, Any], salt: int) -> str:
    """ "" where the memory holds the pattern of this salt, else where it first does not."""
    for start, words in _chunks(memory, salt):
        end = min(start + words.nbytes, memory.nbytes)
        found, wanted = memory[start:end], words.view(np.uint8)[: end - start]
        if not np.array_equal(found, wanted):
            at = start + int(np.argmax(found != wanted))
            return f"byte {at} of {memory.nbytes} is wrong"
    return ""


def _chunks(memory: np.ndarray[Any, Any], salt: int) -> Any:
    total = -(-memory.nbytes // 8)
    for first in range(0, total, _CHUNK_WORDS):
        index = np.arange(first, min(first + _CHUNK_WORDS, total), dtype=np.uint64)
        yield first * 8, (index + np.uint64(salt << 40)) * _STEP


def block_order(count: int, pool: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which blocks of one pool go to which of the other: (from, to), scattered on both sides."""
    ways = np.random.default_rng(count)
    source, place = (ways.permutation(pool)[:count].astype(np.int64) for _ in range(2))
    return source, place


def block_mismatch(target: np.ndarray[Any, Any], block: int, count: int, salt: int) -> str:
    """ "" where each block of the pool is the right one's pattern, and the others are untouched."""
    pool = target.view(np.uint64).reshape(-1, block // 8)
    source, place = block_order(count, len(pool))
    step = max(1, _CHUNK_WORDS // pool.shape[1])
    inside = np.arange(pool.shape[1], dtype=np.uint64)
    for first in range(0, count, step):
        some = slice(first, first + step)
        index = source[some, None].astype(np.uint64) * np.uint64(pool.shape[1]) + inside
        wrong = (pool[place[some]] != (index + np.uint64(salt << 40)) * _STEP).any(axis=1)
        if wrong.any():
            return f"block {place[some][int(np.argmax(wrong))]} is wrong"
    others = np.setdiff1d(np.arange(len(pool)), place)
    if any(pool[other].any() for other in others):
        return "a block that nobody named was written"
    return ""
