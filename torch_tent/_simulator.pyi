"""The fault simulator, and the small classes of the core for property tests.

Built with switches that break a rule on purpose; nothing but the simulator and the tests uses it. A
part is `(base, plane, piece_bytes, [(count, stride_bytes)], blocks)`; a link of the scheduler is
`(link, kind, bytes_per_ns, base_latency_ns, in_flight_bytes, slice_bytes)`.
"""

import builtins
from collections.abc import Callable, Sequence
from typing import TypedDict

Part = tuple[int, int, int, Sequence[tuple[int, int]], Sequence[int] | None]
Link = tuple[int, int, float, int, int, int]

FAMILIES: list[str]
BACKGROUND_SHARE: int

class Outcome(TypedDict):
    schedules: int
    events: int
    hash: int
    seen: dict[str, int]
    failures: list[tuple[int, str]]
    log: list[str]

def run(
    seed: int,
    schedules: int = 1,
    family: str = "",
    sabotage: str = "",
    log: bool = False,
    failures_max: int = 1,
) -> Outcome:
    """Runs the schedules of seeds `seed`, `seed + 1`, ... until some of them broke a promise.

    `seen` counts the schedules in which something happened; `log` is the last schedule's. A
    ValueError names a family or sabotage that does not exist.
    """

class Layout:
    def __init__(self, parts: Sequence[Part]) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def parts(self) -> list[Part]: ...
    def extents(self) -> list[tuple[int, int] | None]:
        """Per part its lowest and one past its highest byte; None where that overflows."""
    def pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(address, bytes) of a stretch of the line; ValueError outside of it."""

class Target:
    def __init__(self, segment: int, key: int, epoch: int, parts: Sequence[Part]) -> None: ...
    @property
    def fields(self) -> tuple[int, int, int, list[Part]]: ...

class Message:
    kind: int
    code: int
    id: int
    context: int
    tag: int
    bytes: int
    meta: int
    is_inline: bool
    has_note: bool
    text: builtins.bytes
    payload: builtins.bytes
    target: Target
    def encode(self) -> builtins.bytes: ...

class Opening:
    kind: int
    bytes: int
    request: int
    has_note: bool
    note: builtins.bytes
    target: Target
    def encode(self) -> builtins.bytes: ...

def decode_message(body: bytes) -> Message | None: ...
def decode_opening(body: bytes) -> Opening | None: ...
def header_well_formed(header: bytes) -> bool: ...
def crc32c(data: bytes) -> int: ...

class Segments:
    def add(
        self,
        planes: Sequence[tuple[int, int]],
        readable: bool,
        writable: bool,
        blocks: int,
        key: int,
    ) -> int: ...
    def remove(self, segment: int) -> bool: ...
    def revoke(self, segment: int, blocks: Sequence[int]) -> int: ...
    def epoch(self, segment: int) -> int: ...
    def resolve(self, target: Target, write: bool) -> tuple[int, str, Layout | None]:
        """(code, why, addresses); code 0 and no reason when the access is allowed."""

class Slicer:
    def __init__(self, bytes: int) -> None: ...
    @property
    def left(self) -> int: ...
    def next(self, wanted: int) -> tuple[int, int]: ...
    def give_back(self, offset: int, bytes: int) -> None: ...

class IntervalSet:
    def add(self, begin: int, end: int) -> int: ...
    def contains(self, begin: int, end: int) -> bool: ...
    @property
    def count(self) -> int: ...
    @property
    def intervals(self) -> int: ...

def worth_taking(mine: int, links: Sequence[Link], left: int) -> bool: ...
def worth_doubling(mine: Link, bytes: int, other: Link, ahead: int) -> bool: ...

class Scheduler:
    def add(self, flow: int, left: int, priority: int, deadline: int, rails: int) -> None: ...
    def remove(self, flow: int) -> None: ...
    def set_left(self, flow: int, left: int) -> None: ...
    @property
    def any_left(self) -> bool: ...
    def next(
        self, mine: int, links: Sequence[Link], may: Callable[[int, int], bool], now: int = 0
    ) -> int:
        """The flow that `links[mine]` should serve now, or 0."""

    def slice_bytes(self, link: Link, priority: int, least: int, now: int) -> int: ...

class PostStamp:
    @property
    def posted(self) -> int: ...
    @property
    def due(self) -> int: ...

class LinkEnd:
    def __init__(self) -> None: ...
    def took(self, ack_later: bool, now: int) -> None: ...
    def places(self, sequence: int) -> None: ...
    def placed(self, sequence: int, now: int, ack_later: bool = False) -> bool: ...
    def must_ack(self, now: int, behind: bool) -> bool: ...
    def ack_due(self) -> int: ...
    def ack(self) -> int: ...

class RailEstimate:
    def __init__(
        self,
        rate_hint: float = 0.0,
        slice_bytes_min: int = ...,
        slice_bytes_max: int = ...,
        link_slice_bytes_min: int = ...,
    ) -> None: ...
    def posted(self, bytes: int, now: int) -> PostStamp: ...
    def acked(self, stamp: PostStamp, bytes: int, now: int) -> None: ...
    def lost(self, bytes: int) -> None: ...
    def eta(self, bytes: int) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def base_latency(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def window(self) -> int: ...
    @property
    def slice_bytes(self) -> int: ...
    @property
    def has_room(self) -> bool: ...
