"""Stage: demo. What happened in one run, as plain values: for the table, the picture and the trace.

Put together by the parent process from what its children and its relays tell; pure, any thread.
What always holds: every moment is on the one monotonic clock of the host, in nanoseconds.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]  # from, to


@dataclass(frozen=True)
class Slice:
    """One slice's journey; without `acked` it was given up on this rail and sent on another."""

    transfer: int
    rail: int
    offset: int
    bytes: int
    posted_ns: int
    ended_ns: int
    acked: bool


@dataclass(frozen=True)
class Write:
    """One `write_blocks`: a layer of a chunk. `landed_ns` is when its notification was seen."""

    chunk: int
    layer: int
    bytes: int
    began_ns: int
    ended_ns: int
    landed_ns: int


@dataclass(frozen=True)
class Fault:
    """What was done to a rail; `healed_ns` is None when it stayed so to the end."""

    rail: int
    what: str  # cut, slow, drop
    at_ns: int
    healed_ns: int | None


@dataclass(frozen=True)
class Verdict:
    """The comparison with one process that does both."""

    tokens_equal: bool
    tokens: int
    tokens_same: int  # before the first difference
    cache_equal: bool
    logits_difference: float


@dataclass(frozen=True)
class Story:
    """A whole run. `crossed[i]` is what rail i's relay passed on: (moment, bytes)."""

    prompt_tokens: int
    rails: int
    rail_bytes_per_s: float
    began_ns: int
    prefilled_ns: int
    writes: Sequence[Write]
    slices: Sequence[Slice]
    crossed: Sequence[Sequence[tuple[int, int]]]
    faults: Sequence[Fault]
    retries: int
    fences: int
    verdict: Verdict
    tokens_ns: Sequence[int]  # when each generated token was there

    @property
    def cache_bytes(self) -> int:
        return sum(write.bytes for write in self.writes)

    @property
    def landed_ns(self) -> int:
        """When the last byte of the cache was there."""
        return max(write.landed_ns for write in self.writes)

    @property
    def landed_early(self) -> float:
        """The share of the cache that had landed when the prefill ended."""
        early = sum(write.bytes for write in self.writes if write.landed_ns <= self.prefilled_ns)
        return early / self.cache_bytes

    @property
    def first_token_ns(self) -> int:
        return self.tokens_ns[0]

    def token_starts(self) -> list[int]:
        """When the computing of each token began: with the whole cache there, or the last token."""
        return [self.landed_ns, *self.tokens_ns[:-1]]

    def seconds(self, moment_ns: int) -> float:
        """Since the prefill began."""
        return (moment_ns - self.began_ns) / 1e9

    def busy(self) -> list[Span]:
        """When there was something to move: from a write's start to its end, overlaps joined."""
        return joined((write.began_ns, write.ended_ns) for write in self.writes)

    def rail_row(self, rail: int) -> RailRow:
        """One rail's line of the table."""
        here = [item for item in self.slices if item.rail == rail]
        good = [item for item in here if item.acked]
        moved = sum(item.bytes for item in good)
        used_ns = covered((item.posted_ns, item.ended_ns) for item in good)
        return RailRow(
            bytes=moved,
            slices=len(good),
            resent=len(here) - len(good),
            bytes_per_s=moved / (used_ns / 1e9) if used_ns else 0.0,
            stall_s=longest_pause([item.ended_ns for item in good], self.busy()) / 1e9,
        )

    def stall_s(self) -> float:
        """The longest time in which no rail delivered anything although there was work."""
        ends = [item.ended_ns for item in self.slices if item.acked]
        return longest_pause(ends, self.busy()) / 1e9


@dataclass(frozen=True)
class RailRow:
    """What one rail did. `bytes_per_s` is while slices were on it; `resent` went elsewhere."""

    bytes: int
    slices: int
    resent: int
    bytes_per_s: float
    stall_s: float


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same time without overlaps, in order."""
    found: list[Span] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def covered(spans: Iterable[Span]) -> int:
    """How long at least one of the spans lasted."""
    return sum(last - first for first, last in joined(spans))


def longest_pause(moments: Sequence[int], busy: Sequence[Span]) -> int:
    """The longest time within one busy span without any of the moments."""
    ordered = sorted(moments)
    longest = 0
    for first, last in busy:
        inside = ordered[bisect.bisect_left(ordered, first) : bisect.bisect_right(ordered, last)]
        steps = itertools.pairwise([first, *inside, last])
        longest = max(longest, *(after - before for before, after in steps))
    return longest


def served(slices: Iterable[Slice]) -> list[tuple[Slice, Span]]:
    """Each slice of one rail with the time in which the rail worked on it.

    Several slices are on a rail at once, one behind the other: each is served from the end of the
    one before it, so that the spans do not overlap and add up to the time the rail was busy.
    """
    found = []
    free_ns = 0
    for item in sorted(slices, key=lambda each: (each.ended_ns, each.posted_ns)):
        first = min(max(item.posted_ns, free_ns), item.ended_ns)
        found.append((item, (first, item.ended_ns)))
        free_ns = item.ended_ns
    return found
