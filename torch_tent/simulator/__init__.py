"""The deterministic fault simulator: the protocol of csrc/core under every kind of failure.

One seed is one schedule: a few simulated processes ask things of each other over a network that
loses, delays, doubles, tears and reorders, while rails, links and processes fail and heal. Every
byte is checked. After FoundationDB's simulation and TigerBeetle's VOPR.

Called by the tests and by `python -m torch_tent.simulator`. Threads: one per worker; schedules
share nothing.
"""

from __future__ import annotations

import faulthandler
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch_tent import _simulator

FAMILIES = tuple(_simulator.FAMILIES)
SABOTAGES = ("no_fence", "no_dedup", "early_note")
CHUNK_SCHEDULES = 500
STALLED_S = 120.0


@dataclass
class Result:
    """What many schedules came to: counts, and (seed, broken promise) of those that failed."""

    schedules: int = 0
    events: int = 0
    seconds: float = 0.0
    hash: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, outcome: _simulator.Outcome) -> None:
        """Adds one worker's outcome; chunks are added in the order of their seeds."""
        self.schedules += outcome["schedules"]
        self.events += outcome["events"]
        self.hash = (self.hash * 1_000_003 ^ outcome["hash"]) % 2**64
        self.seen.update(outcome["seen"])
        self.failures += outcome["failures"]


def simulate(
    seed: int, schedules: int, workers: int = 1, family: str = "", sabotage: str = ""
) -> Result:
    """Runs the schedules of seeds `seed` to `seed + schedules - 1`, up to the first failures.

    With the same arguments the result is the same, `seconds` apart, whatever `workers` is. Raises
    ValueError for a family or sabotage that does not exist. A schedule in which a call never
    returns ends the process after two minutes, with the seeds it may have been.
    """
    result = Result()
    began = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(seed, seed + schedules, CHUNK_SCHEDULES * workers):
            stop = min(start + CHUNK_SCHEDULES * workers, seed + schedules)
            with _ends_when_stalled():
                running = [
                    pool.submit(_chunk, first, min(CHUNK_SCHEDULES, stop - first), family, sabotage)
                    for first in range(start, stop, CHUNK_SCHEDULES)
                ]
                _collect(running, result)
            if result.failures:
                break
    result.seconds = time.monotonic() - began
    return result


@contextmanager
def _ends_when_stalled() -> Iterator[None]:
    faulthandler.dump_traceback_later(STALLED_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _chunk(seed: int, schedules: int, family: str, sabotage: str) -> _simulator.Outcome:
    return _simulator.run(seed, schedules, family=family, sabotage=sabotage)


def _collect(running: list[Future[_simulator.Outcome]], result: Result) -> None:
    wait(running)
    for chunk in running:
        result.add(chunk.result())
