"""Stage: benchmarks. Question: what does an urgent 64 KiB wait for while a large transfer goes on?

Foreground transfers every millisecond, alone and beside a background elephant, and what the
elephant keeps of its rate: on one host, over loopback TCP, or over four shaped rails (with root).
Run alone: `python benchmarks/mixed.py --quick`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import lineup
import rails
from compare import Case, Pace, compare
from harness import Arms, ArmSpec, Column, Outcome
from results import Question, percentiles

MIB = 1 << 20
MODES = (("alone", ("small",)), ("elephant alone", ("large",)), ("both", ("small", "large")))


def case(place: str, names: list[str], seconds: float) -> Case:
    """Each arm in the three modes, in turns."""
    columns = [
        Column(f"{name}, {label}", name, "mixed", "peer", (("modes", modes),))
        for name in names
        for label, modes in MODES
    ]
    params = {"bytes": 64 * MIB, "small": 64 << 10, "seconds": seconds, "pages": "huge"}
    return Case(f"64 KiB beside an elephant, {place}", params, tuple(columns), fixed=1)


def summary(name: str, outcomes: list[Outcome]) -> dict[str, Any] | None:
    """How the three modes compare; seconds and shares."""
    found = {outcome.column.label: outcome for outcome in outcomes}
    alone, elephant, both = (found[f"{name}, {label}"] for label, _ in MODES)
    if any(outcome.trouble for outcome in (alone, elephant, both)):
        return None

    def kept(outcome: Outcome) -> float:
        rates = sorted(note["large_bytes_per_s"] for note in outcome.notes)
        return float(rates[len(rates) // 2])

    before, after = percentiles(alone.samples), percentiles(both.samples)
    return {
        "p50_alone_s": before["p50"],
        "p99_alone_s": before["p99"],
        "p50_both_s": after["p50"],
        "p99_both_s": after["p99"],
        "p99_ratio": after["p99"] / before["p99"],
        "elephant_alone_bytes_per_s": kept(elephant),
        "elephant_keeps": kept(both) / kept(elephant),
    }


def specs(names: list[str], shaped: bool) -> list[ArmSpec]:
    """The arms of one host and of loopback TCP; on rails only those that can use them."""
    if shaped:
        return [rails.spec(name) for name in names]
    found = [lineup.known(name) for name in names]
    tent = lineup.known("tent")
    return [*found, replace(tent, name="tent tcp", env=(*tent.env, ("TENT_TRANSPORTS", "tcp")))]


def main() -> None:
    """Runs the question, once on each kind of place."""
    parser = lineup.options(__doc__ or "", "gloo")
    parser.add_argument("--place", choices=("host", "rails"), default="host")
    chosen = parser.parse_args()
    shaped = chosen.place == "rails"
    if shaped and "RAILS_NAME" not in os.environ:
        os.execv(rails.SCRIPT, [rails.SCRIPT, "with", sys.executable, *sys.argv])
    if not shaped:
        lineup.isolate()
    names = ["tent", *lineup.names(chosen, ("gloo",))]

    def measure(found: Arms, question: Question, pace: Pace) -> None:
        one = case(chosen.place, list(found.running), 0.4 if chosen.quick else 1.5)
        outcomes = compare(found, one, pace)
        question.add(one, outcomes)
        for name in list(found.running):
            if told := summary(name, outcomes):
                question.rows.append({"case": one.label, "column": name, "arm": name} | told)
                print(
                    f"  {name}: P50 {told['p50_alone_s'] * 1e6:.0f} -> "
                    f"{told['p50_both_s'] * 1e6:.0f} us, P99 {told['p99_alone_s'] * 1e6:.0f} -> "
                    f"{told['p99_both_s'] * 1e6:.0f} us ({told['p99_ratio']:.2f} x); "
                    f"the elephant keeps {told['elephant_keeps']:.2f}"
                )

    lineup.run(f"mixed-{chosen.place}", "us", chosen, specs(names, shaped), measure)


if __name__ == "__main__":
    main()
