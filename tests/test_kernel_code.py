"""The kernels compile for a GPU, and move 16 bytes at a time where the memory allows it.

This needs no GPU: Triton brings its own compiler and assembler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_they_compile_and_use_wide_loads_and_stores(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    made = subprocess.run(
        [sys.executable, "-m", "tests.compile_kernels"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert made.returncode == 0, made.stderr
    accesses = json.loads(made.stdout)
    wide = {"v2.b64", "v4.b32"}
    for name, found in accesses.items():
        for verb in ("ld", "st"):
            widths = {access.removeprefix(f"{verb}.global.") for access in found if verb in access}
            assert widths & wide, (name, found)
    assert len(accesses) == 6
