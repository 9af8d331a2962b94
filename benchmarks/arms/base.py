"""Stage: benchmarks, in a player. What an arm offers the harness: probes, each one measured thing.

Called by player.py. What always holds: `run` measures nothing but the engine; content is written
and checked outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import memory
import numpy as np


class Missing(Exception):
    """The engine is not installed here, or cannot run; the message says which."""


class NotOffered(Exception):
    """The engine has no such operation."""


class Probe:
    """One operation of one case, in one process.

    `source` is filled and `target` checked, where a process has them; subclasses give `once`.
    """

    passive = False  # only rank 0 calls the engine; the others `serve`

    def __init__(self, source: Any = None, target: Any = None) -> None:
        self.source = source
        self.target = target

    def once(self) -> None:
        """Does it one time."""
        raise NotImplementedError

    def run(self, times: int) -> dict[str, Any]:
        """Measures `times` in a row: {"begin", "end"} of the machine's clock, in seconds."""
        once = self.once
        begin = time.monotonic()
        for _ in range(times):
            once()
        return {"begin": begin, "end": time.monotonic()}

    def serve(self, resting: Callable[[], bool]) -> None:
        """What a passive player does meanwhile: nothing, for engines that need no help."""

    def fill(self, salt: int) -> None:
        """Writes this salt's pattern into the source."""
        if self.source is not None:
            memory.fill(self.source, salt)

    def check(self, salt: int) -> str:
        """ "" when the target holds this salt's pattern."""
        return "" if self.target is None else memory.mismatch(self.target, salt)

    def pages(self) -> str:
        """The page size of the memory."""
        mine = self.source if self.source is not None else self.target
        return "" if mine is None else memory.pages_of(mine)

    def close(self) -> None:
        """Gives memory and connections back."""


class Steps(Probe):
    """A probe made of a function. `begin`, where it is set, starts one and does not wait."""

    begin: Callable[[], Any]

    def __init__(
        self,
        once: Callable[[], Any],
        source: Any = None,
        target: Any = None,
        passive: bool = False,
        serve: Callable[[], Any] | None = None,
        close: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(source, target)
        self.once = once  # type: ignore[method-assign]
        self.passive = passive
        self._serve = serve
        self._close = close

    def serve(self, resting: Callable[[], bool]) -> None:
        """Gives the engine time until rank 0 is through."""
        while self._serve is not None and not resting():
            self._serve()

    def close(self) -> None:
        """Runs the closing function, if there is one."""
        if self._close is not None:
            self._close()


def keep_going(probe: Steps, depth: int) -> None:
    """Makes its runs keep `depth` transfers on the way, waiting for the oldest."""

    def run(times: int) -> dict[str, Any]:
        going = []
        start = time.monotonic()
        for _ in range(times):
            if len(going) == depth:
                going.pop(0).wait()
            going.append(probe.begin())
        for transfer in going:
            transfer.wait()
        return {"begin": start, "end": time.monotonic()}

    probe.run = run  # type: ignore[method-assign]


class Idle(Probe):
    """The place of a player that has no part in this one, beyond its memory."""

    passive = True

    def __init__(self, source: Any = None, target: Any = None, close: Any = None) -> None:
        super().__init__(source, target)
        self._close = close

    def close(self) -> None:
        """Closes what the memory was registered with."""
        if self._close is not None:
            self._close()


class BlockSteps(Steps):
    """Moves the blocks of `memory.block_order`; `case` has "block" and "count"."""

    def __init__(self, case: dict[str, Any], once: Callable[[], Any], **others: Any) -> None:
        super().__init__(once, **others)
        self._case = case

    def check(self, salt: int) -> str:
        """Every block in its place, and nothing else written."""
        return check_blocks(self._case, self.target, salt)


def block_order(case: dict[str, Any]) -> Any:
    """(from, to) of a case's blocks, as arrays of int64."""
    return memory.block_order(case["count"], case["bytes"] // case["block"])


def check_blocks(case: dict[str, Any], target: Any, salt: int) -> str:
    """ "" where the target has the case's blocks; a process without a target has nothing to say."""
    if target is None:
        return ""
    return memory.block_mismatch(target, case["block"], case["count"], salt)


class Wakes(Probe):
    """How late a waiter that has gone to sleep sees a message: one way, by the machine's clock."""

    def __init__(self, rank: int, send: Callable[[], Any], recv: Callable[[], Any], stamp: Any):
        super().__init__()
        self._rank = rank
        self._send = send
        self._recv = recv
        self._stamp = stamp  # one int64 in the message

    def run(self, times: int) -> dict[str, Any]:
        """Rank 0 sends its clock every 3 ms; rank 1 waits and compares."""
        late = []
        for _ in range(times):
            if self._rank == 0:
                time.sleep(3e-3)
                self._stamp[0] = time.monotonic_ns()
                self._send()
            else:
                self._recv()
                late.append((time.monotonic_ns() - int(self._stamp[0])) * 1e-9)
        return {"samples": late} if late else {}


class Arm:
    """An engine in one process. Subclasses have `offer_NAME(case)` for each operation."""

    def __init__(self, seat: Any) -> None:
        self.seat = seat

    def version(self) -> str:
        """The engine's name and version."""
        raise NotImplementedError

    def offer(self, op: str, case: dict[str, Any]) -> Probe:
        """A probe of the named operation; raises NotOffered where there is none."""
        found = getattr(self, f"offer_{op}", None)
        if found is None:
            raise NotOffered(f"no {op}")
        probe: Probe = found(case)
        return probe

    def buffer(self, case: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Ordinary memory as the case wants it: its bytes, on its page size."""
        return memory.allocate(case["bytes"], case.get("pages", "huge"))

    def close(self) -> None:
        """Leaves; the process ends at once after it."""
