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


class TracedFlow(Flow):
    """Two transfers on the way at any time; bytes count when their slice was acknowledged.

    `native`: the engine of csrc, which keeps a trace of its slices.
    """

    def __init__(self, arm: Any, one: Probe, case: dict[str, Any], native: Any) -> None:
        super().__init__(arm, one, case)
        self.native = native

    def run(self, times: int) -> dict[str, Any]:
        """As of every flow; the rail is the slice's."""
        self.native.trace(True)
        self.native.take_trace()
        slices: list[Any] = []
        error = ""
        begin = time.monotonic()
        going = []
        try:
            while time.monotonic() < begin + self.case["seconds"]:
                going.append(self.one.begin())  # type: ignore[attr-defined]
                if len(going) == 2:
                    going.pop(0).wait()
                slices += self.native.take_trace()
            for transfer in going:
                transfer.wait()
        except Exception as why:
            error = f"{type(why).__name__}: {why}"[:200]
        slices += self.native.take_trace()
        self.native.trace(False)
        acked = sorted((entry[6], entry[4], entry[2]) for entry in slices if entry[7])
        return self.report(begin, [(at * 1e-9, size, rail) for at, size, rail in acked], error)
