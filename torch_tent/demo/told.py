"""Stage: demo. What each child tells its parent at its end, as plain values.

Made by the children, read by the parent, which has neither torch nor transformers loaded. What
always holds: every moment is on the one monotonic clock of the host, in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sent:
    """One `write_blocks` as the prefill process saw it."""

    chunk: int
    layer: int
    bytes: int
    began_ns: int
    ended_ns: int


@dataclass(frozen=True)
class Prefilled:
    """Of the prefill process. `trace` is the engine's record of every slice: transfer, peer, rail,
    offset, bytes, posted_ns, ended_ns, acked."""

    began_ns: int
    prefilled_ns: int
    sent: Sequence[Sent]
    trace: Sequence[tuple[int, int, str, int, int, int, int, bool]]
    fences: int
    digest: str


@dataclass(frozen=True)
class Decoded:
    """Of the decode process. `landed_ns` is by notification; `logits` is [tokens, vocabulary]."""

    landed_ns: dict[bytes, int]
    tokens: Sequence[int]
    tokens_ns: Sequence[int]
    logits: Sequence[Sequence[float]]
    digest: str


@dataclass(frozen=True)
class Alone:
    """Of the process that does both."""

    tokens: Sequence[int]
    logits: Sequence[Sequence[float]]
