"""`python -m torch_tent.simulator`: runs seeded fault schedules, or replays one with its log.

    python -m torch_tent.simulator --schedules 100000 --workers 2
    python -m torch_tent.simulator --seed 4711 --log          # what happened, event by event

Exit status 1 when a promise was broken: the seed and the command that replays it are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys

from torch_tent import _simulator
from torch_tent.simulator import FAMILIES, SABOTAGES, Result, simulate


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; a seed that was not given is drawn, and printed with every failure."""
    parser = argparse.ArgumentParser("python -m torch_tent.simulator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, help="the first seed; drawn when it is not given")
    parser.add_argument("--schedules", type=int, default=1, help="how many seeds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    parser.add_argument("--family", choices=FAMILIES, default="", help="only this kind")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="break a rule on purpose")
    parser.add_argument("--log", action="store_true", help="print every event")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    given = parser.parse_args(arguments)
    if given.seed is None:
        given.seed = random.SystemRandom().getrandbits(40)
    if given.schedules < 1 or given.workers < 1 or given.seed < 0:
        parser.error("--schedules and --workers are at least 1, --seed is not negative")
    if given.log and given.schedules != 1:
        parser.error("--log shows one schedule: leave --schedules out")
    return given


def show(given: argparse.Namespace, result: Result) -> None:
    """A summary: counts, what the schedules covered, and how to replay what failed."""
    print(
        f"{result.schedules} schedules from seed {given.seed} in {result.seconds:.1f} s, "
        f"{result.events} events, hash {result.hash:016x}"
    )
    for name, count in sorted(result.seen.items(), key=lambda item: -item[1]):
        print(f"  {name:24} {count}")
    options = "".join(
        f" --{name} {value}"
        for name, value in (("family", given.family), ("sabotage", given.sabotage))
        if value
    )
    for seed, why in result.failures:
        print(f"seed {seed}: {why}")
        print(f"  replay it: python -m torch_tent.simulator --seed {seed}{options} --log")


def main() -> int:
    """Runs, prints, and returns the exit status."""
    given = parse()
    if given.log:
        outcome = _simulator.run(given.seed, family=given.family, sabotage=given.sabotage, log=True)
        print("\n".join(outcome["log"]))
        print(f"hash {outcome['hash']:016x}")
        return 1 if outcome["failures"] else 0
    result = simulate(given.seed, given.schedules, given.workers, given.family, given.sabotage)
    if given.json:
        json.dump(vars(result), sys.stdout)
    else:
        show(given, result)
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
