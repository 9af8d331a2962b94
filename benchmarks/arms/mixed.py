"""Stage: benchmarks, in a player. Small urgent transfers while a large one goes on without end.

Called by the arms, which say what one small and one large transfer is. What always holds: both ends
of a two-sided engine run the same number of transfers, because each carries whether more follow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from .base import Probe

PAUSE_S = 1e-3


class Mixed(Probe):
    """For `case["seconds"]`: small transfers every millisecond, large ones one after the other.

    `small(more)` and `large(more)` do one transfer and return whether another follows: `more` on
    rank 0, what rank 0 said on the others. `case["modes"]` has "small", "large" or both.
    """

    def __init__(
        self,
        rank: int,
        case: dict[str, Any],
        small: Callable[[bool], bool],
        large: Callable[[bool], bool],
        passive: bool,
        close: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.case = case
        self.small = small
        self.large = large
        self.passive = passive
        self._close = close

    def run(self, times: int) -> dict[str, Any]:
        """Latencies of the small ones as samples; the large ones' bytes a second in `notes`."""
        end = time.monotonic() + self.case["seconds"]
        moved = 0
        failure: list[BaseException] = []

        def elephant() -> None:
            nonlocal moved
            try:
                while self.large(time.monotonic() < end):
                    moved += 1
            except BaseException as why:
                failure.append(why)

        beside = threading.Thread(target=elephant)
        begin = time.monotonic()
        if "large" in self.case["modes"]:
            beside.start()
            time.sleep(0.05)
        late = self._mice(end) if "small" in self.case["modes"] else []
        if beside.ident is not None:
            beside.join()
        if failure:
            raise failure[0]
        spent = time.monotonic() - begin
        if self.rank > 0:
            return {}
        found = {"notes": {"large_bytes_per_s": moved * self.case["bytes"] / spent}}
        return found | ({"samples": late} if late else {"seconds": spent})

    def _mice(self, end: float) -> list[float]:
        late = []
        more = True
        while more:
            if self.rank == 0:
                time.sleep(PAUSE_S)
            began = time.monotonic()
            more = self.small(began < end)
            late.append(time.monotonic() - began)
        return late[:-1]

    def pages(self) -> str:
        """As the case says."""
        return str(self.case.get("pages", "2M"))

    def close(self) -> None:
        """Gives the memory back."""
        if self._close is not None:
            self._close()
