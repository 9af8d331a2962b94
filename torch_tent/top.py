"""Stage: CLI. `python -m torch_tent top`: the rates of all engines of this host and user, live.

Called by torch_tent/__main__.py on the main thread. Reads the snapshots that engines with a metrics
port write, and nothing else. What always holds: bytes and seconds of a rate are of one window.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import SettingsError
from .exporter import read_snapshots, snapshot_folder
from .settings import Settings
from .telemetry import Snapshot

HEADER = ("engine", "peer", "rail", "state", "out MB/s", "in MB/s", "in flight", "retries")


@dataclass(frozen=True)
class Row:
    """One rail of one engine between two snapshots."""

    engine: str
    peer: str
    rail: str
    up: bool
    sent_bytes_per_s: float
    received_bytes_per_s: float
    in_flight_bytes: int
    retries: int

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADER."""
        rates = (self.sent_bytes_per_s, self.received_bytes_per_s)
        return (
            self.engine,
            self.peer,
            self.rail,
            "up" if self.up else "down",
            *(f"{rate / 1e6:.1f}" for rate in rates),
            f"{self.in_flight_bytes / 1024:.0f} KiB",
            str(self.retries),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of top."""
    parser.add_argument("--port", type=int, help="the engines' TENT_METRICS_PORT (default: ours)")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds (default: 2)")
    parser.add_argument("--once", action="store_true", help="print one table and end")


def run(options: argparse.Namespace) -> int:
    """Prints tables until it is interrupted; 1 when no engine can be seen."""
    try:
        port = options.port or Settings.from_environment().metrics_port
        if port is None:
            raise SettingsError("give --port, or set TENT_METRICS_PORT as for the engines")
        folder = snapshot_folder(port)
    except SettingsError as error:
        print(f"top: {error}", file=sys.stderr)
        return 1
    before = read_snapshots(folder)
    try:
        while True:
            time.sleep(options.interval)
            after = read_snapshots(folder)
            rows = rates(before, after)
            if sys.stdout.isatty() and not options.once:
                print("\x1b[H\x1b[2J", end="")
            print(table(rows) if after else f"no engine has TENT_METRICS_PORT={port} here")
            if options.once:
                return int(not after)
            before = after
    except KeyboardInterrupt:
        return 0


def rates(before: Sequence[Snapshot], after: Sequence[Snapshot]) -> list[Row]:
    """What each rail did between two looks; 0 for engines that have not written again."""
    earlier = {each["incarnation"]: each for each in before}
    rows = []
    for each in after:
        last = earlier.get(each["incarnation"], each)
        seconds = each["time_s"] - last["time_s"]
        known = {(rail["peer"], rail["rail"]): rail for rail in last["rails"]}
        for rail in each["rails"]:
            past = known.get((rail["peer"], rail["rail"]), {})
            rows.append(
                Row(
                    engine=each["name"],
                    peer=rail["peer_name"],
                    rail=rail["rail"],
                    up=rail["up"],
                    sent_bytes_per_s=_rate(rail, past, "bytes_sent", seconds),
                    received_bytes_per_s=_rate(rail, past, "bytes_received", seconds),
                    in_flight_bytes=rail["in_flight_bytes"],
                    retries=rail["retries"],
                )
            )
    return rows


def _rate(rail: dict[str, Any], past: dict[str, Any], key: str, seconds: float) -> float:
    return float(rail[key] - past.get(key, 0)) / seconds if seconds > 0 else 0.0


def table(rows: Sequence[Row]) -> str:
    """The rows in columns, under a header."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column >= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
