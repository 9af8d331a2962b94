"""The corpora of the fuzz targets are replayed, with any compiler; a moment of fuzzing tickets."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.fuzz import targets, tickets

SANITIZER = os.environ.get("TENT_SANITIZE", "")
FLAGS = ["-fsanitize=address,undefined"] if SANITIZER == "address" else []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_input_of_the_corpus_is_borne(name: str, tmp_path: Path) -> None:
    """With the sanitizers in tests/sanitize.sh; otherwise only what the target itself checks."""
    build = "-".join(filter(None, [sysconfig.get_config_var("SOABI"), SANITIZER]))
    csrc = targets.ROOT / "build" / build / "engine/csrc"
    pure = [pattern.replace(".cpp", ".o") for pattern in targets.SOURCES]
    objects = [made for pattern in pure for made in sorted(csrc.glob(pattern))]
    if not objects:
        pytest.skip("no in-place build")
    program = tmp_path / name
    targets.build_replay(name, objects, FLAGS, program)
    corpus = targets.CORPUS / name
    plain = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    ran = subprocess.run([str(program), str(corpus)], capture_output=True, text=True, env=plain)
    assert ran.returncode == 0, f"{ran.stdout.splitlines()[-1:]}\n{ran.stderr}"
    assert f"{len(list(corpus.iterdir()))} inputs" in ran.stdout


def test_tickets_that_cannot_be_are_refused_as_such(seed: int) -> None:
    answers = [said for _, said, _ in tickets.fuzz(2.0, seed)]
    assert any(said.startswith("good") for said in answers)
    assert len(answers) > 5
