"""Stage: benchmarks, the parent. What was measured, as a table, as JSON and as a picture.

Called by the question files when a run has ended. What always holds: every file says the machine,
the date, the versions and the command that makes it again.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import Case, paired_ratio
from harness import Outcome

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "results"


@dataclass
class Question:
    """One run of one question file: its rows grow while it measures."""

    name: str
    unit: str  # "GB/s", "Gbit/s", "us" or "ms": how the table shows times
    rows: list[dict[str, Any]]
    versions: dict[str, str]
    absent: dict[str, str]

    def add(self, case: Case, outcomes: Sequence[Outcome], unit: str = "") -> None:
        """Keeps one case's outcomes and prints them."""
        rows = [self._row(case, outcome, outcomes, unit or self.unit) for outcome in outcomes]
        self.rows += rows
        print_rows(case.label, rows)

    def _row(
        self, case: Case, outcome: Outcome, outcomes: Sequence[Outcome], unit: str
    ) -> dict[str, Any]:
        column, size = outcome.column, case.params.get("bytes", 0)
        row: dict[str, Any] = {
            "case": case.label,
            "column": column.label,
            "role": column.role,
            "arm": column.arm,
            "op": column.op,
            "params": case.params | dict(column.extra),
            "pages": outcome.pages,
            "repeat": outcome.repeat,
            "unit": unit,
        }
        if outcome.trouble or not outcome.seconds:
            return row | {"trouble": outcome.trouble or "nothing was measured"}
        shown = sorted(show(value, size, unit) for value in outcome.seconds)
        row |= {
            "seconds": outcome.seconds,
            "median": statistics.median(shown),
            "low": shown[0],
            "high": shown[-1],
            "cpu_seconds": statistics.median(outcome.cpu),
            "verified": True,
        }
        if outcome.samples:
            row["percentiles_s"] = percentiles(outcome.samples)
        if any(outcome.notes):
            row["notes"] = outcome.notes
        if column.role == "ours":
            others = [o for o in outcomes if o.column.role != "ours"]
            ratios = {o.column.label: paired_ratio(o, outcome) for o in others}
            row["speed_against"] = {k: v for k, v in ratios.items() if v is not None}
        return row

    def save(self, path: str | None, quick: bool) -> Path:
        """Writes the JSON file, and the picture beside it where matplotlib is there."""
        FOLDER.mkdir(exist_ok=True)
        stamp = datetime.datetime.now(datetime.UTC)
        name = f"{self.name}-{stamp:%Y%m%d-%H%M%S}{'-quick' if quick else ''}.json"
        target = Path(path) if path else FOLDER / name
        found = {
            "question": self.name,
            "date": stamp.isoformat(timespec="seconds"),
            "command": command(),
            "machine": machine(),
            "versions": self.versions | {"torch_tent commit": commit()},
            "absent": self.absent,
            "rows": self.rows,
        }
        target.write_text(json.dumps(found, indent=1) + "\n")
        if not path and not quick:
            draw(self, target.with_suffix(".png"))
        print(f"written: {os.path.relpath(target)}", file=sys.stderr)
        return target


def show(seconds: float, size: int, unit: str) -> float:
    """A time in the table's unit; rates of `size` bytes, a KB being 1000 bytes."""
    if unit == "GB/s":
        return size / seconds / 1e9
    if unit == "Gbit/s":
        return 8 * size / seconds / 1e9
    return seconds * {"us": 1e6, "ms": 1e3, "s": 1.0, "ns": 1e9}[unit]


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the worst."""
    ordered = sorted(samples)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": ordered[-1]}


def print_rows(label: str, rows: Sequence[dict[str, Any]]) -> None:
    """One case as a table: medians with their spread, and our speed as a ratio to the limits and to
    the fastest peer; the file has the others."""
    print(f"\n{label}")
    for row in rows:
        if "trouble" in row:
            print(f"  {row['column']:<26} {row['trouble'][:90]}")
            continue
        ratios = "  ".join(
            f"{ratio:.2f} x {k}" for k, ratio in row.get("speed_against", {}).items()
        )
        print(
            f"  {row['column']:<26} {row['median']:9.3f} {row['unit']:<6} "
            f"[{row['low']:.3f} .. {row['high']:.3f}] n={len(row['seconds'])} "
            f"{row['pages']:<5} {ratios}",
            flush=True,
        )


def command() -> str:
    """How this run was started, without the places of this machine."""
    root = f"{HERE.parent}/"
    words = [Path(sys.argv[0]).name, *(word.removeprefix(root) for word in sys.argv[1:])]
    return "python benchmarks/" + " ".join(words)


def commit() -> str:
    """The version of the sources, "+" where they have changed since."""
    try:
        found = subprocess.run(
            ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def machine() -> dict[str, Any]:
    """What the numbers depend on; no name of the host."""
    cpu = Path("/proc/cpuinfo").read_text()
    model = next((line for line in cpu.splitlines() if line.startswith("model name")), ":?")
    return {
        "cpu": model.partition(":")[2].strip(),
        "virtual": " hypervisor" in cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "transparent_hugepage": _setting("/sys/kernel/mm/transparent_hugepage/enabled"),
        "congestion_control": _setting("/proc/sys/net/ipv4/tcp_congestion_control"),
        "load_before": LOAD_BEFORE,
    }


def _setting(path: str) -> str:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0] or text


LOAD_BEFORE = os.getloadavg()[0]


def draw(question: Question, target: Path) -> None:
    """Speed of every column over the cases, in the unit of the table."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [row for row in question.rows if "median" in row and row["unit"] == question.unit]
    cases = list(dict.fromkeys(row["case"] for row in good))
    if not cases:
        return
    figure, axes = pyplot.subplots(figsize=(max(6, 1.2 * len(cases) + 3), 5), layout="constrained")
    for label in dict.fromkeys(row["column"] for row in good):
        mine = [row for row in good if row["column"] == label]
        places = [cases.index(row["case"]) for row in mine]
        line = axes.plot(places, [row["median"] for row in mine], marker="o", label=label)[0]
        if mine[0]["role"] == "limit":
            line.set_linestyle(":")
        low, high = [row["low"] for row in mine], [row["high"] for row in mine]
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(cases)), cases, rotation=30, ha="right")
    axes.set_ylabel(question.unit)
    axes.set_yscale("log")
    axes.set_title(question.name)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
