"""Stage: tests. `python -m torch_tent demo` as its user runs it: whole runs, and bad input.

Whole runs are real: three processes, relays, faults; with a short prompt. They take seconds, most
of them for the imports of transformers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from torch_tent import demo
from torch_tent.demo.story import covered

WHOLE_S = 240
PROMPT = demo.OWN_TEXT.read_bytes()[:1000]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(PROMPT)
    return path


def start(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch_tent", "demo", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(given)


@pytest.mark.timeout(WHOLE_S)
@pytest.mark.parametrize(("fault", "rails"), [("cut", 4), ("slow", 2), ("drop", 3), ("none", 1)])
def test_a_whole_run_ends_with_equal_tokens(
    fault: str, rails: int, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start("--text", str(text), "--rails", str(rails), "--fault", fault, "--out", str(out))
    told, complaints = process.communicate(timeout=WHOLE_S)
    assert process.returncode == 0, complaints
    assert "tokens equal: all 48 generated tokens" in " ".join(told.split())
    assert "equals the computed one, byte for byte" in " ".join(told.split())
    assert (out / "rails.png").read_bytes().startswith(b"\x89PNG")
    events = json.loads((out / "slices.json").read_text())["traceEvents"]
    spans = defaultdict(list)
    for slice_ in (e["args"] for e in events if e["ph"] == "X" and "acked" in e["args"]):
        first = slice_["offset"]
        spans[slice_["transfer"]].append((first, first + slice_["bytes"]))
    # Every byte was in a slice: the blocks of the 1000 tokens before the last, 16 KiB a token. A
    # slice is in the trace when it was acknowledged; for the last few that may be after the end.
    whole = 63 * 16 * 16384
    assert whole - 8 * 16384 <= sum(covered(of_one) for of_one in spans.values()) <= whole
    faults = [e for e in events if e["name"] == f"fault: {fault}"]
    assert len(faults) == {"cut": 2, "none": 0}.get(fault, 1)


@pytest.mark.timeout(WHOLE_S)
def test_a_killed_process_ends_the_run_with_its_name(text: Path, tmp_path: Path) -> None:
    process = start("--text", str(text), "--fault", "none", "--out", str(tmp_path))
    children = wait_for_children(process.pid)
    children[-1].kill()
    _, complaints = process.communicate(timeout=WHOLE_S)
    assert process.returncode == 1
    assert "process was killed by SIGKILL before it was done" in complaints
    assert_gone(children)


@pytest.mark.timeout(WHOLE_S)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_an_ended_run_leaves_no_process(
    number: int, status: int, text: Path, tmp_path: Path
) -> None:
    process = start("--text", str(text), "--fault", "none", "--out", str(tmp_path))
    children = wait_for_children(process.pid)
    os.kill(process.pid, number)
    process.communicate(timeout=WHOLE_S)
    assert process.returncode == status
    assert_gone(children)


def wait_for_children(pid: int) -> list[psutil.Process]:
    """Everything below the demo's parent, once the prefill and the decode process are there."""
    until = time.monotonic() + WHOLE_S
    while time.monotonic() < until:
        found = psutil.Process(pid).children(recursive=True)
        if len(found) >= 4:  # The resource tracker, the fork server, and the two.
            return found
        time.sleep(0.05)
    raise AssertionError("the processes were not started")


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--rails", "0"], "--rails 0 is not from 1 to 8"),
        (["--rails", "9"], "--rails 9 is not from 1 to 8"),
        (["--rails", "1", "--fault", "slow"], "use --rails 2 or more, or --fault none"),
        (["--text", "/no/such/text"], "No such file or directory: '/no/such/text'"),
        (["--text", "/dev/null"], "/dev/null holds 0 bytes: the prompt needs 256"),
        (["--out", "/dev/null/here"], "Not a directory: '/dev/null/here'"),
    ],
)
def test_bad_input_is_named(
    given: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.run(options(*given)) == 1
    assert complaint in capsys.readouterr().err


def test_missing_packages_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"transformers", "matplotlib"}
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    assert demo.run(options()) == 1
    complaint = capsys.readouterr().err
    assert "run `pip install transformers matplotlib`" in complaint
    assert complaint.count("\n") == 1


def test_sigterm_is_as_it_was_after_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert demo.run(options("--text", "/no/such/text")) == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert "demo:" in capsys.readouterr().err
