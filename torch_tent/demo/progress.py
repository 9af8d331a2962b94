"""Stage: demo. What is shown while the demo runs: bars on a terminal, plain lines elsewhere.

Used by the parent's main thread. What always holds: without a terminal nothing that was printed is
overwritten, and the same is told with fewer steps.
"""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

QUARTERS = 4  # Without a terminal a bar is told this often.


class Bar:
    """One thing that grows from 0 to `total`."""

    def __init__(self, stage: Stage, name: str, total: float) -> None:
        self._stage = stage
        self._name = name
        self._total = total
        self._done = 0.0
        self._shown = stage.bars.add_task(name, total=total) if stage.bars else None

    def advance(self, by: float) -> None:
        before = int(self._done / self._total * QUARTERS)
        self._done = min(self._total, self._done + by)
        if self._stage.bars is not None and self._shown is not None:
            self._stage.bars.update(self._shown, completed=self._done)
        elif int(self._done / self._total * QUARTERS) > before:
            self._stage.say(f"{self._name} {self._done / self._total:.0%}")


class Stage:
    """Where everything is shown; a context manager that leaves the terminal as it was."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self.bars: Progress | None = None
        if console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=40),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def bar(self, name: str, total: float) -> Bar:
        return Bar(self, name, total)

    def say(self, text: str, style: str = "") -> None:
        """One line, with the seconds since the beginning."""
        took = time.monotonic() - self._began
        self._console.print(f"{took:6.1f} s  {text}", style=style, highlight=False, soft_wrap=True)
