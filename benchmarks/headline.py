"""Stage: benchmarks. Writes the README's tables out of the files in results/.

`python benchmarks/headline.py` after a run that kept its results; `--check` changes nothing and
says whether the table is up to date. What always holds: every target that was measured is in the
table, missed ones too, and no number in it comes from anywhere but results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from results import FOLDER
from run import PLANS, judge
from targets import targets

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- benchmarks/headline.py writes from here ... -->"
END = "<!-- ... to here -->"


def kept() -> dict[str, Any]:
    """The results of each question that has a file in results/."""
    files = {name: FOLDER / f"{name}.json" for name, *_ in PLANS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def figure(value: float, unit: str) -> str:
    """0.98 x, 12 ms: as many digits as mean something."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    if "." in text and value >= 1 and unit not in ("x", ""):
        text = text.rstrip("0").rstrip(".")
    if unit in ("x", ""):
        return text if unit else f"{value:g}"
    return f"{text} {unit}"


def table(found: dict[str, Any]) -> str:
    """All targets that were measured, as a Markdown table, and where the numbers come from."""
    lines = ["| what | asked | measured | |", "|---|---|---|---|"]
    for one in targets():
        verdict, value = judge(one, found)
        if value is None:
            continue
        asked = f"{one.limit()} {one.unit}".removesuffix(" x").strip()
        missed = "" if verdict == "pass" else "missed"
        lines.append(f"| {one.what} | {asked} | {figure(value, one.unit)} | {missed} |")
    return "\n".join([*beside(found), *lines, "", sources(found)])


# As the rails' question names them.
PEERS = ("tent", "nixl", "gloo", "mptcp", "mooncake")


def beside(found: dict[str, Any]) -> list[str]:
    """Rails, beside other engines: rates of a transfer, and the longest gap in a stream."""
    rows = found["rails"]["rows"] if "rails" in found else []
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        peer = next((name for name in PEERS if row["column"].startswith(name)), None)
        case = row["case"].removeprefix("fault: ")
        if peer is None or case == "background traffic":
            continue
        if "gap_s" not in row:
            lines.setdefault(f"{case}, Gbit/s", {})[peer] = f"{row['median']:.2f}"
            continue
        failed = f"{row['errors']} of {row['runs']} failed" if row["errors"] else ""
        gap = figure(row["gap_s"] * 1e3, "ms") if row["errors"] < row["runs"] else ""
        shown = ", ".join(word for word in (gap, failed) if word)
        lines.setdefault(f"{case}: longest gap", {})[peer] = shown
    if not lines:
        return []
    table = [f"| four rails | {' | '.join(PEERS)} |", "|---" * (len(PEERS) + 1) + "|"]
    for what, cells in lines.items():
        table.append(f"| {what} | {' | '.join(cells.get(peer, '') for peer in PEERS)} |")
    return [*table, ""]


def sources(found: dict[str, Any]) -> str:
    """One sentence on machine, dates and load of the runs."""
    machines = {f"{f['machine']['cores']} cores of {f['machine']['cpu']}" for f in found.values()}
    dates = sorted(f["date"][:10] for f in found.values())
    loads = [f["machine"]["load_before"] for f in found.values()]
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"{' and '.join(sorted(machines))}, {span}, load before each run "
        f"{min(loads):.1f} to {max(loads):.1f}; commands, versions and every round: "
        "`benchmarks/results/`."
    )


def rewritten(readme: str, text: str) -> str:
    """The README with `text` between the two marks. Raises ValueError where they are missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the lines {BEGIN!r} and {END!r}: put them back")
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


def main() -> None:
    """Rewrites the README, or checks it."""
    parser = argparse.ArgumentParser(description="Writes the README's table out of results/.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 when it is stale")
    chosen = parser.parse_args()
    before = README.read_text()
    after = rewritten(before, table(kept()))
    if not chosen.check:
        README.write_text(after)
    elif after != before:
        sys.exit("the table in README.md is stale: run benchmarks/headline.py")


if __name__ == "__main__":
    main()
