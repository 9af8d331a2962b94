"""Stage: benchmarks, the parent. Compares the columns of a case: warm-up, rounds in turns, checks.

Called by the question files with running arms. What always holds: a column that fails, hangs or
delivers a wrong byte is out, with the reason; the others go on.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness import ArmFailed, Arms, Column, Outcome, RunningArm, Skipped


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds, seconds a column gets in each, and when to give up on one."""

    rounds: int = 9
    budget_s: float = 0.2
    repeat_max: int = 20_000
    limit_s: float = 60.0


QUICK = Pace(rounds=5, budget_s=0.04)
FULL = Pace()


@dataclass(frozen=True)
class Case:
    """One line of a question: what is moved, and which columns are compared.

    `params` reach the arms: "bytes", "pages" and what an operation needs. `fixed`: repetitions a
    round, where the time decides nothing (0: fitted to the budget).
    """

    label: str
    params: dict[str, Any]
    columns: tuple[Column, ...]
    fixed: int = 0


def compare(found: Arms, case: Case, pace: Pace) -> list[Outcome]:
    """Measures every column of the case `pace.rounds` times, in turns."""
    outcomes = [Outcome(column) for column in case.columns if column.arm in found.running]
    for outcome in outcomes:
        _guard(found, outcome, lambda arm, o: _prepare(arm, o, case, pace))
    for number in range(pace.rounds):
        for outcome in _alive(outcomes):
            _guard(found, outcome, lambda arm, o, n=number: _measure(arm, o, case, pace, n + 2))
    for outcome in outcomes:
        arm = found.running.get(outcome.column.arm)
        if arm is not None:
            arm.call("drop", outcome.column.label)
            arm.prepared.discard(outcome.column.label)
    return outcomes


def _alive(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.trouble]


def _guard(found: Arms, outcome: Outcome, step: Any) -> None:
    """Carries out one step of a column; what goes wrong ends the column, or its arm."""
    name = outcome.column.arm
    arm = found.running.get(name)
    if arm is None:
        outcome.trouble = found.absent[name]
        return
    try:
        step(arm, outcome)
    except Skipped as why:
        outcome.trouble = str(why)
    except ArmFailed as why:
        outcome.trouble = str(why)
        found.drop(name, f"{outcome.column.label}: {why}")
        found.start(arm.spec)


def _prepare(arm: RunningArm, outcome: Outcome, case: Case, pace: Pace) -> None:
    """Memory and connections, a warm-up that is checked too, and how often to repeat."""
    _offer(arm, outcome, case)
    repeat = 1
    seconds = _run(arm, outcome, repeat, pace, salt=1)
    while not case.fixed and seconds < 0.25 * pace.budget_s and repeat < pace.repeat_max:
        growth = pace.budget_s / max(seconds, 1e-7)
        repeat = min(pace.repeat_max, max(repeat + 1, int(repeat * min(growth, 16))))
        seconds = _run(arm, outcome, repeat, pace, salt=1)
    if not case.fixed:
        repeat = max(1, min(pace.repeat_max, int(repeat * pace.budget_s / max(seconds, 1e-7))))
    outcome.repeat = case.fixed or repeat
    outcome.seconds, outcome.cpu, outcome.samples, outcome.notes = [], [], [], []


def _offer(arm: RunningArm, outcome: Outcome, case: Case) -> None:
    column = outcome.column
    params = case.params | dict(column.extra)
    pages = arm.call("prepare", column.label, column.op, params)
    outcome.pages = "/".join(dict.fromkeys(page for page in pages if page))
    arm.prepared.add(column.label)


def _measure(arm: RunningArm, outcome: Outcome, case: Case, pace: Pace, salt: int) -> None:
    if outcome.column.label not in arm.prepared:  # Another column has brought the arm down.
        _offer(arm, outcome, case)
    _run(arm, outcome, outcome.repeat, pace, salt)


def _run(arm: RunningArm, outcome: Outcome, repeat: int, pace: Pace, salt: int) -> float:
    """One filled, timed and checked run; the seconds of all its repetitions."""
    label = outcome.column.label
    arm.call("fill", label, salt)
    replies = arm.call("run", label, repeat, limit_s=pace.limit_s)
    for rank, wrong in enumerate(arm.call("check", label, salt)):
        if wrong:
            raise ArmFailed(f"wrong bytes on rank {rank}: {wrong}")
    samples = [value for reply in replies for value in reply.get("samples", [])]
    spans = [reply for reply in replies if "begin" in reply]
    if samples:
        seconds = statistics.median(samples) * repeat
    elif spans:
        seconds = max(s["end"] for s in spans) - min(s["begin"] for s in spans)
    else:
        seconds = max(reply["seconds"] for reply in replies if "seconds" in reply)
    outcome.seconds.append(seconds / repeat)
    outcome.cpu.append(sum(reply["cpu"] for reply in replies) / repeat)
    outcome.samples += samples
    outcome.notes.append({k: v for reply in replies for k, v in reply.get("notes", {}).items()})
    return seconds


def paired_ratio(other: Outcome, ours: Outcome) -> float | None:
    """How many times as fast as `other` we are: the median of the ratios of each round."""
    pairs = list(zip(other.seconds, ours.seconds, strict=False))
    if not pairs or other.trouble or ours.trouble:
        return None
    return statistics.median(theirs / mine for theirs, mine in pairs)


def say(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)
