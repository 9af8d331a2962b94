"""Stage: tests. Runs PyTorch's suite for backends: `python -m tests.conformance BACKEND RESULTS`.

BACKEND is "tent" or "gloo"; RESULTS a JSON file that is written: per test "passed", "failed" or
"skipped", and why. A third argument is a pattern that the tests' names must match. Each test starts
eight processes; one after the other.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
import unittest
from pathlib import Path
from typing import Any


class Recorder(unittest.TextTestResult):
    """Writes down what became of each test, and shows it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.found: dict[str, dict[str, Any]] = {}

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._began = time.monotonic()
        super().startTest(test)

    def note(self, test: unittest.TestCase, what: str, why: str = "") -> None:
        name = test.id().rpartition(".")[2]
        seconds = round(time.monotonic() - self._began, 1)
        self.found[name] = {"result": what, "why": why, "seconds": seconds}
        print(f"{name}: {what} {why.splitlines()[-1] if why else ''}", flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.note(test, "passed")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self.note(test, "failed", self._exc_info_to_string(err, test))

    addError = addFailure  # noqa: N815

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self.note(test, "skipped", reason)


def run(results: Path, pattern: str = "") -> bool:
    """Runs the tests whose names match; true when none failed."""
    # It reads the environment when it is imported.
    suite: Any = importlib.import_module("tests.conformance.torch_suite")
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(suite.TestBackend)
    chosen = unittest.TestSuite(t for t in tests if re.search(pattern, t.id()))
    with open(os.devnull, "w") as nowhere:
        runner = unittest.TextTestRunner(stream=nowhere, resultclass=Recorder)
        recorder: Any = runner.run(chosen)
    results.write_text(json.dumps(recorder.found, indent=1, sort_keys=True))
    return not any(entry["result"] == "failed" for entry in recorder.found.values())


if __name__ == "__main__":
    os.environ["BACKEND"] = sys.argv[1]
    sys.exit(0 if run(Path(sys.argv[2]), *sys.argv[3:4]) else 1)
