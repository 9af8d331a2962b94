"""Stage: tests. Writes docs/conformance.md out of the results of two runs of PyTorch's suite.

A program: `python -m tests.conformance.table TENT.json GLOO.json`. Also imported by the test, for
`defects`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

Results = dict[str, dict[str, Any]]
PAGE = Path(__file__).resolve().parent.parent.parent / "docs/conformance.md"
# Tests that gloo passes, and no backend from outside of torch can.
ARGUED = {
    "test_ddp_logging_data_cpu": "DDP's logger asks the process group for the backend's name, and "
    "torch's ProcessGroup calls every backend that is not its own `custom`; a backend has no say.",
}
HEAD = """# PyTorch's suite for backends

`torch/testing/_internal/distributed/distributed_test.py` of torch {version}, eight ranks on one
host without a GPU, on "tent" and, as control, on "gloo". None of its assertions is changed. Inside
it, the name "tent" compares equal to "gloo", because it skips by the backend's name
(`tests/conformance/torch_suite.py` says how). This page is made by `make conformance`.

| | tent | gloo |
|---|---|---|
"""


def count(results: Results, what: str) -> int:
    """How many tests ended so."""
    return sum(entry["result"] == what for entry in results.values())


def defects(tent: Results, gloo: Results) -> list[str]:
    """Tests that pass on gloo and do not on tent, and those that fail on tent; not ARGUED ones."""
    passing = {name for name, entry in gloo.items() if entry["result"] == "passed"}
    failing = {name for name, entry in tent.items() if entry["result"] == "failed"}
    lost = {name for name in passing if tent[name]["result"] != "passed"}
    return sorted((failing | lost) - set(ARGUED))


def page(tent: Results, gloo: Results) -> str:
    """The page's text."""
    lines = [HEAD.format(version=torch.__version__.partition("+")[0])]
    rows = [("tests", str(len(tent)), str(len(gloo)))]
    for what in ("passed", "failed", "skipped"):
        rows.append((what, str(count(tent, what)), str(count(gloo, what))))
    lines += [f"| {' | '.join(row)} |\n" for row in rows]
    bad = defects(tent, gloo)
    lines.append("\n## What gloo passes and tent does not\n\n")
    lines += [f"- `{name}`: {tent[name]['why'].strip().splitlines()[-1]}\n" for name in bad]
    lines += [f"- `{name}`: {why}\n" for name, why in ARGUED.items() if name in tent]
    lines.append("\n## Why tests are skipped\n\n| reason | tent | gloo |\n|---|---|---|\n")
    reasons = [
        Counter(entry["why"] for entry in results.values() if entry["result"] == "skipped")
        for results in (tent, gloo)
    ]
    for reason, number in sorted(reasons[0].items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"| {reason.strip()} | {number} | {reasons[1].get(reason, 0)} |\n")
    lines.append("\n## Tests that ran on tent\n\n")
    ran = sorted(name for name, entry in tent.items() if entry["result"] != "skipped")
    lines += [f"- `{name}`: {tent[name]['result']}\n" for name in ran]
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(*(json.loads(Path(name).read_text()) for name in sys.argv[1:3])))
