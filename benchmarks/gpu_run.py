"""Stage: benchmarks. What the measurements of gpu.sh have in common: options, and what ran where.

Used by gpu.py and gpu_blocks.py. What always holds: what was measured is written, though a later
case failed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torch_tent as tent

Rows = list[dict[str, Any]]


def run(about: str, measure: Callable[[Rows], None], conclude: Callable[[Rows], None]) -> int:
    """Measures and concludes; the status to exit with: 3 where there is no GPU."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU: nothing was measured.")
        return 3
    rows: Rows = []
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tent": tent.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "benchmarks/gpu.sh",
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    try:
        measure(rows)
    finally:
        conclude(rows)
        if arguments.json:
            text = json.dumps({"about": machine, "rows": rows}, indent=1)
            arguments.json.write_text(text + "\n")
    return 0
