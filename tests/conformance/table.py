"""Stage: tests. Writes docs/conformance.md out of the results of PyTorch's suite.

A program: `python -m tests.conformance.table FOLDER`. Also imported by the test, for `defects`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.conformance.suites import BACKENDS, SUITES, Suite

Results = dict[str, dict[str, Any]]
Pair = tuple[Suite, Results, Results]  # on tent, on gloo
PAGE = Path(__file__).resolve().parent.parent.parent / "docs/conformance.md"
ARGUED_PAGE = Path(__file__).resolve().parent / "argued.md"
# Tests that gloo passes, and no backend from outside of torch can: argued.md says why.
ARGUED = frozenset({"test_ddp_logging_data_cpu"})
HEAD = """# PyTorch's suite for backends

`torch/testing/_internal/distributed/distributed_test.py` of torch {version}, on one host without a
GPU, on "tent" and, as control, on "gloo". None of its assertions is changed. Inside it, the
backend's name compares equal to "gloo" too, because it skips by name; in one run to "mpi", the only
backend that it asks for all_to_all of CPU tensors (`tests/conformance/torch_suite.py` says how).
The file has 315 functions named `test_`: {cases} cases on a backend, {plain} on the sizes of DDP's
buckets, which know no backend, and the rest are functions inside of others. This page is made by
`make conformance`.

| suite | backend | cases | passed | failed | skipped |
|---|---|---|---|---|---|
"""


def count(results: Results, what: str) -> int:
    """How many tests ended so."""
    return sum(entry["result"] == what for entry in results.values())


def defects(tent: Results, gloo: Results) -> list[str]:
    """Tests that pass on gloo and do not on tent, and those that fail on tent; not ARGUED ones."""
    passing = {name for name, entry in gloo.items() if entry["result"] == "passed"}
    failing = {name for name, entry in tent.items() if entry["result"] == "failed"}
    lost = {name for name in passing if tent[name]["result"] != "passed"}
    return sorted((failing | lost) - ARGUED)


def load(folder: Path) -> list[Pair]:
    """The results of every suite that ran on both backends, in the order of SUITES."""
    pairs: list[Pair] = []
    for suite in SUITES:
        files = [folder / f"{suite.name}.{backend}.json" for backend in BACKENDS]
        if all(file.exists() for file in files):
            tent, gloo = (json.loads(file.read_text()) for file in files)
            pairs.append((suite, tent, gloo))
    return pairs


def page(pairs: list[Pair]) -> str:
    """The page's text."""
    version = torch.__version__.partition("+")[0]
    sizes = {suite.name: len(tent) for suite, tent, _ in pairs}
    head = HEAD.format(version=version, cases=sizes["three"], plain=sizes["buckets"])
    ran = {suite for suite, _, _ in pairs}
    missing = [f"\nNot run for this page: {s.title}.\n" for s in SUITES if s not in ran]
    parts = [head, *totals(pairs), *missing, *not_passed(pairs), *reasons(pairs), *cases(pairs)]
    return "".join(parts)


def totals(pairs: list[Pair]) -> list[str]:
    lines = []
    for suite, *pair in pairs:
        for backend, results in zip(BACKENDS, pair, strict=True):
            numbers = [len(results), *(count(results, w) for w in ("passed", "failed", "skipped"))]
            lines.append(f"| {suite.title} | {backend} | {' | '.join(map(str, numbers))} |\n")
    return lines


def not_passed(pairs: list[Pair]) -> list[str]:
    """What gloo passes and tent does not, or fails on tent."""
    lines = ["\n## What gloo passes and tent does not\n\n"]
    for suite, tent, gloo in pairs:
        for name in defects(tent, gloo):
            why = tent[name]["why"].strip().splitlines() or ["?"]
            lines.append(f"- `{name}` ({suite.title}): {tent[name]['result']}: {why[-1]}\n")
    return [*lines, ARGUED_PAGE.read_text()]


def reason_of(entry: dict[str, Any], backend: str) -> str:
    why: str = entry["why"].strip()
    return why.replace(f"requires backend {backend}", "requires the backend")


def reasons(pairs: list[Pair]) -> list[str]:
    """Why cases are skipped, with their number per suite: on tent and, where it differs, gloo."""
    counted = [
        [
            Counter(reason_of(e, backend) for e in found.values() if e["result"] == "skipped")
            for backend, found in zip(BACKENDS, pair, strict=True)
        ]
        for _, *pair in pairs
    ]
    total: Counter[str] = Counter()
    for tent, gloo in counted:
        total += tent | gloo
    lines = ["\n## Why cases are skipped\n\nOn tent; where gloo differs, its number follows.\n\n"]
    lines.append(f"| reason | {' | '.join(suite.name for suite, _, _ in pairs)} |\n")
    lines.append("|---" * (1 + len(pairs)) + "|\n")
    for reason, _ in sorted(total.items(), key=lambda item: (-item[1], item[0])):
        cells = [
            str(tent[reason]) + (f" (gloo {gloo[reason]})" if gloo[reason] != tent[reason] else "")
            for tent, gloo in counted
        ]
        lines.append(f"| {reason} | {' | '.join(cells)} |\n")
    return lines


def cases(pairs: list[Pair]) -> list[str]:
    """Every case that ran on tent, with the suites in which it passed."""
    ran: dict[str, list[str]] = {}
    for suite, tent, _ in pairs:
        for name, entry in tent.items():
            if entry["result"] != "skipped":
                failed = "" if entry["result"] == "passed" else f" {entry['result']}"
                ran.setdefault(name, []).append(suite.name + failed)
    lines = [f"\n## The {len(ran)} cases that ran on tent, and the suites in which they passed\n\n"]
    return lines + [f"- `{name}`: {', '.join(where)}\n" for name, where in sorted(ran.items())]


if __name__ == "__main__":
    PAGE.write_text(page(load(Path(sys.argv[1]))))
