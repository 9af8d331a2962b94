"""Stage: tests. The README's table of ratios says what the kept results say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_readme_shows_the_kept_results() -> None:
    line = [sys.executable, str(ROOT / "benchmarks/headline.py"), "--check"]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
