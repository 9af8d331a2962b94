"""Stage: tests. What PyTorch's suite passes on gloo, it passes on tent. Slow: `-m slow` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.table import Results, count, defects

ROOT = Path(__file__).resolve().parent.parent.parent
HOUR_S = 3600


def results(backend: str, folder: Path) -> Results:
    path = folder / f"{backend}.json"
    command = [sys.executable, "-m", "tests.conformance", backend, str(path)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=HOUR_S)
    found: Results = json.loads(path.read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(2 * HOUR_S)
def test_what_runs_on_gloo_runs_on_tent(tmp_path: Path) -> None:
    tent, gloo = results("tent", tmp_path), results("gloo", tmp_path)
    assert count(gloo, "passed") > 50, "the control itself does not work"
    assert defects(tent, gloo) == []
    assert count(tent, "passed") >= count(gloo, "passed")
