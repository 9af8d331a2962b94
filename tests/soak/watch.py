"""Stage: tests, soak. What a process holds, over time: memory, descriptors, threads.

Used by the parent's only thread. What always holds: a process that has run for a while must not
hold more and more.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
WARM_S = 60.0  # from here on it should be level
GROWTH = {"rss_bytes": 48 << 20, "descriptors": 12, "threads": 4}
MOST = {"rss_bytes": 2 << 30, "descriptors": 500, "threads": 100}


@dataclass
class Watch:
    """One process, from its start."""

    pid: int
    began: float = field(default_factory=time.monotonic)
    seen: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MOST})

    def look(self) -> str:
        """Takes a reading. What is too much of it, in words; "" when nothing is."""
        place = Path("/proc") / str(self.pid)
        try:
            found = {
                "rss_bytes": int((place / "statm").read_text().split()[1]) * PAGE,
                "descriptors": len(os.listdir(place / "fd")),
                "threads": len(os.listdir(place / "task")),
            }
        except OSError:
            return ""
        if time.monotonic() > self.began + WARM_S:
            for name, value in found.items():
                self.seen[name].append(value)
        over = [f"{value} {name}" for name, value in found.items() if value > MOST[name]]
        return ", ".join(over)

    def grown(self) -> dict[str, tuple[float, float]]:
        """The medians of the first and the last quarter, of what there is enough of."""
        halves = {}
        for name, values in self.seen.items():
            quarter = len(values) // 4
            if quarter >= 10:
                halves[name] = (
                    statistics.median(values[:quarter]),
                    statistics.median(values[-quarter:]),
                )
        return halves

    def leak(self) -> str:
        """What has grown more than it may, in words; "" when nothing has."""
        return ", ".join(
            f"{name} from {first:.0f} to {last:.0f}"
            for name, (first, last) in self.grown().items()
            if last - first > GROWTH[name]
        )
