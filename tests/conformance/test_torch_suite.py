"""Stage: tests. What PyTorch's suite passes on gloo, it passes on tent. Slow: `-m slow` runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.suites import SUITES
from tests.conformance.table import count, defects, load

ROOT = Path(__file__).resolve().parent.parent.parent
HOUR_S = 3600


@pytest.mark.slow
@pytest.mark.timeout(2 * HOUR_S)
def test_what_runs_on_gloo_runs_on_tent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.conformance", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=2 * HOUR_S)
    pairs = load(tmp_path)
    assert len(pairs) == len(SUITES)
    for suite, tent, gloo in pairs:
        assert count(gloo, "passed") >= 8, "the control itself does not work"
        assert defects(tent, gloo) == [], suite.title
        assert count(tent, "passed") + 1 >= count(gloo, "passed"), suite.title


# ---- without running it --------------------------------------------------------------------------


def entry(result: str, why: str = "") -> dict[str, object]:
    return {"result": result, "why": why, "seconds": 0.1}


def test_what_counts_as_a_defect() -> None:
    tent = {"a": entry("passed"), "b": entry("failed"), "c": entry("skipped"), "d": entry("failed")}
    gloo = {"a": entry("failed"), "b": entry("failed"), "c": entry("passed"), "d": entry("passed")}
    assert defects(tent, gloo) == ["b", "c", "d"]
    argued = {"test_ddp_logging_data_cpu": entry("failed")}
    assert defects(argued, {"test_ddp_logging_data_cpu": entry("passed")}) == []
