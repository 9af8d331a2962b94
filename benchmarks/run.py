"""Stage: benchmarks. Runs the questions in turn and prints what they say of the targets.

`python benchmarks/run.py --quick --minutes 15` is `make bench`: fewer sizes and rounds, and no
longer than that; a question that is cut short keeps what it has. Without `--quick` every question
runs in full. Exit status 1 when a target that was measured is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import FOLDER, command, commit, machine
from targets import Target, targets

HERE = Path(__file__).resolve().parent
# Question, file, arguments, whether it needs root.
PLANS = (
    ("p2p", "p2p.py", (), False),
    ("blocks", "blocks.py", (), False),
    ("rails", "rails.py", (), True),
    ("collectives", "collectives.py", (), False),
    ("mixed-host", "mixed.py", (), False),
    ("mixed-rails", "mixed.py", ("--place", "rails"), True),
    ("cost-loopback", "cost.py", (), False),
    ("cost-rails", "cost.py", ("--place", "rails"), True),
    ("connect", "connect.py", (), False),
)


def ask(
    name: str, file: str, words: tuple[str, ...], chosen: argparse.Namespace, deadline: float
) -> Any:
    """Runs one question; its results, or None where it failed. At the deadline (of the monotonic
    clock) it is interrupted, and saves what it has."""
    print(f"\n=== {name}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tent-results-") as folder:
        target = FOLDER / f"{name}.json" if chosen.keep else Path(folder) / "rows.json"
        FOLDER.mkdir(exist_ok=True)
        line = [sys.executable, str(HERE / file), *words, "--json", str(target)]
        line += ["--quick"] if chosen.quick else []
        line += ["--against", chosen.against] if chosen.against else []
        status = run_until(line, deadline)
        if status or not target.exists():
            print(f"{name} failed with status {status}", file=sys.stderr)
            return None
        return json.loads(target.read_text())


def run_until(line: list[str], deadline: float) -> int:
    """The exit status of a program, which is interrupted at the deadline, with all that it started,
    and ended by force when it does not take that as a reason to leave."""
    with subprocess.Popen(line, start_new_session=True) as program:
        try:
            return program.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print("the time is over: it is interrupted", file=sys.stderr, flush=True)
            program.send_signal(signal.SIGINT)
        except KeyboardInterrupt:
            program.send_signal(signal.SIGINT)
            raise
        try:
            return program.wait(20.0)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            return program.wait()


def judge(one: Target, found: dict[str, Any]) -> tuple[str, float | None]:
    """("pass" | "miss" | "-", the value)."""
    answer = found.get(one.question)
    value = one.measure(answer["rows"]) if answer else None
    if value is None:
        return "-", None
    return ("pass" if one.passes(value) else "miss"), value


def print_table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets with what was measured."""
    rows = []
    print(f"\n{'question':<14} {'target':<46} {'asked':>8} {'measured':>10}")
    for one in targets():
        verdict, value = judge(one, found)
        shown = "" if value is None else f"{value:.3g} {one.unit}"
        print(f"{one.question:<14} {one.what:<46} {one.limit():>8} {shown:>10}  {verdict}")
        rows.append({"question": one.question, "target": one.what, "asked": one.limit()})
        rows[-1] |= {"unit": one.unit, "measured": value, "verdict": verdict}
    return rows


def main() -> None:
    """Runs the questions and judges them."""
    parser = argparse.ArgumentParser(description="Runs the benchmarks and checks the targets.")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, 5 short rounds")
    parser.add_argument("--against", default="", help="peers, with commas between; or none")
    parser.add_argument("--only", default="", help="questions, with commas between")
    parser.add_argument("--keep", action="store_true", help="keep every result in results/")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="at most; 0: as long as it takes"
    )
    chosen = parser.parse_args()
    deadline = time.monotonic() + (60 * chosen.minutes or 1e6)
    wanted = chosen.only.split(",") if chosen.only else [name for name, *_ in PLANS]
    found: dict[str, Any] = {}
    for name, file, words, root in PLANS:
        if name not in wanted:
            continue
        if root and os.getuid() != 0:
            print(f"\n=== {name}: skipped, it makes network namespaces and needs root")
            continue
        if time.monotonic() > deadline:
            print(f"\n=== {name}: not run, the time is over")
            continue
        if answer := ask(name, file, words, chosen, deadline):
            found[name] = answer
    rows = print_table(found)
    if chosen.keep:
        told = {"command": command(), "commit": commit(), "machine": machine(), "targets": rows}
        (FOLDER / "targets.json").write_text(json.dumps(told, indent=1) + "\n")
    missed = sum(row["verdict"] == "miss" for row in rows)
    measured = sum(row["verdict"] != "-" for row in rows)
    print(f"\n{measured - missed} of {measured} measured targets hold")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
