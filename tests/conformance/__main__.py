"""Stage: tests. Runs PyTorch's suite for backends: `python -m tests.conformance FOLDER`.

Writes FOLDER/SUITE.BACKEND.json for every Suite and backend: per test "passed", "failed" or
"skipped", and why. `python -m tests.conformance FOLDER SUITE BACKEND [PATTERN]` runs one of them,
and of it the tests whose names match the pattern. Each test starts its ranks as processes; one test
after the other.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conformance.suites import BACKENDS, SUITES, Suite, suite_of


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


def cases_in(tests: Any) -> Iterator[unittest.TestCase]:
    for test in tests:
        if isinstance(test, unittest.TestCase):
            yield test
        else:
            yield from cases_in(test)


def source_of(case: Any) -> str:
    """The case's source with its decorators."""
    name = case.id().rpartition(".")[2]
    return inspect.getsource(inspect.unwrap(getattr(type(case), name)))


def run(results: Path, what: Suite, pattern: str = "") -> bool:
    """Runs the suite's cases whose names match; true when none failed."""
    # It reads the environment when it is imported.
    module: Any = importlib.import_module("tests.conformance.torch_suite")
    tests = module.cases_of_groups() if what.ranks else module.cases_without_group()
    chosen = unittest.TestSuite(
        case
        for case in cases_in(tests)
        if re.search(pattern, case.id()) and what.marker in source_of(case)
    )
    with open(os.devnull, "w") as nowhere:
        runner = unittest.TextTestRunner(stream=nowhere, resultclass=Recorder)
        recorder: Any = runner.run(chosen)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(recorder.found, indent=1, sort_keys=True))
    return not any(entry["result"] == "failed" for entry in recorder.found.values())


def run_all(folder: Path) -> bool:
    """Every suite on every backend, each in a process of its own; true when none failed."""
    codes = [
        subprocess.run(
            [sys.executable, "-m", "tests.conformance", str(folder), suite.name, backend]
        ).returncode
        for suite in SUITES
        for backend in BACKENDS
    ]
    return not any(codes)


def main(folder: str, name: str = "", backend: str = "", pattern: str = "") -> bool:
    if not name:
        return run_all(Path(folder))
    suite = suite_of(name)
    os.environ |= {"BACKEND": backend, "WORLD_SIZE": str(suite.ranks), "LIKE": suite.like}
    return run(Path(folder) / f"{name}.{backend}.json", suite, pattern)


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
