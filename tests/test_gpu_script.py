"""Tests of benchmarks/gpu.sh where there is no GPU: it says so, and touches nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def run(python: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks/gpu.sh")]
    environment = os.environ | {"PYTHON": python}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would measure")
def test_without_a_gpu() -> None:
    done = run(sys.executable)
    assert done.returncode == 3
    assert done.stdout == f"torch {torch.__version__} sees no GPU: nothing was measured.\n"


def test_without_torch(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = run(str(python))
    assert done.returncode == 3
    assert "There is no torch in" in done.stderr
