"""Stage: benchmarks, in a player. Transfers one after the other for some seconds, and when bytes
arrived.

For questions about faults: the harness injects them meanwhile. What always holds: an error of the
engine is part of the result, not the end of the run.
"""

from __future__ import annotations

import time
from typing import Any

from .base import Probe


class Flow(Probe):
    """Runs another probe for `case["seconds"]`; each end of a transfer is a delivery.

    `arm.tell(go)`, where there is one, tells rank 1 whether another transfer follows.
    """

    def __init__(self, arm: Any, one: Probe, case: dict[str, Any]) -> None:
        super().__init__(one.source, one.target)
        self.one = one
        self.passive = one.passive
        self.case = case
        self.rank = arm.seat.rank
        self.tell = getattr(arm, "tell", lambda go: go)

    def run(self, times: int) -> dict[str, Any]:
        """`delivered` has [seconds of the machine's clock, bytes, rail]; `error` what ended it."""
        delivered: list[tuple[float, int, str]] = []
        error = ""
        begin = time.monotonic()
        try:
            while self.tell(time.monotonic() < begin + self.case["seconds"]):
                self.one.once()
                delivered.append((time.monotonic(), self.case["bytes"], ""))
        except Exception as why:
            error = f"{type(why).__name__}: {why}"[:200]
        return self.report(begin, delivered, error)

    def report(self, begin: float, delivered: Any, error: str) -> dict[str, Any]:
        """What rank 0 saw."""
        if self.rank > 0:
            return {}
        end = time.monotonic()
        return {
            "seconds": end - begin,
            "begin": begin,
            "end": end,
            "notes": {"delivered": delivered, "error": error},
        }

    def serve(self, resting: Any) -> None:
        """As the probe that it runs."""
        self.one.serve(resting)

    def close(self) -> None:
        """As the probe that it runs."""
        self.one.close()
