"""A short soak (tests/soak), and what it must notice."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.soak.patterns import PERIOD, Quarantine, first_difference, pattern
from tests.soak.watch import GROWTH, Watch

SECONDS = 6


@pytest.mark.timeout(400)
def test_a_short_soak_moves_bytes_and_finds_nothing(seed: int) -> None:
    command = [sys.executable, "-m", "tests.soak", f"--minutes={SECONDS / 60}", f"--seed={seed}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert summary["verbs"]["bytes"] > 0
    assert sum(summary["faults"].values()) > 0


def test_patterns_differ_by_seed_and_place() -> None:
    whole = pattern(5, 0, 3 * PERIOD)
    assert np.array_equal(whole[1000:90_000], pattern(5, 1000, 89_000))
    for other in (pattern(6, 0, whole.size), pattern(5, 1, whole.size), pattern(5, 4096, 9)):
        size = other.size
        assert np.count_nonzero(whole[:size] == other) < size // 2
    assert first_difference(whole, whole) == ""
    other = whole.copy()
    other[7] ^= 1
    assert first_difference(other, whole).startswith("1 of 196563 bytes are wrong, from 7 to 7")


def test_a_stray_byte_in_quarantine_is_found() -> None:
    quarantine = Quarantine()
    memory = torch.zeros(1000, dtype=torch.uint8)
    quarantine.add("a read", memory)
    memory[3] = 1
    assert "1 stray bytes in 1000 of a read" in quarantine.check(everything=True)
    assert quarantine.check(everything=True) == ""


def test_what_grows_is_found() -> None:
    watch = Watch(pid=0)
    level = [10.0] * 100
    watch.seen = {"rss_bytes": level, "descriptors": level, "threads": level[:30]}
    assert watch.leak() == ""
    watch.seen["descriptors"] = [10.0 + n * GROWTH["descriptors"] / 40 for n in range(100)]
    assert watch.leak().startswith("descriptors from ")
