"""Stage: tests. Many threads do everything to two engines at once, in a native program.

Links tests/native/engine_stress.cpp with the objects of the in-place build; also with those of
`TENT_SANITIZE=thread` or `address` where such a build has been made (tests/sanitize.sh makes them).
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests/native/engine_stress.cpp"
SECONDS = {"": 3, "thread": 20, "address": 3}
FOR_PYTHON = {"LD_PRELOAD", "ASAN_OPTIONS"}
FLAGS = {"": "", "thread": "-fsanitize=thread", "address": "-fsanitize=address,undefined"}


@pytest.mark.timeout(240)  # Under a sanitizer, on a machine that does other things too.
@pytest.mark.parametrize("sanitizer", ["", "thread", "address"])
def test_threads_that_do_everything_at_once(sanitizer: str, seed: int, tmp_path: Path) -> None:
    build = "-".join(filter(None, [sysconfig.get_config_var("SOABI"), sanitizer]))
    objects = [
        str(made)
        for made in (ROOT / "build" / build / "engine/csrc").rglob("*.o")
        if "bindings" not in made.relative_to(ROOT / "build").as_posix()
    ]
    if not objects:
        pytest.skip(f"no build with sanitizer {sanitizer!r}" if sanitizer else "no in-place build")
    program = tmp_path / "engine_stress"
    flags = ["-std=c++20", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    flags += FLAGS[sanitizer].split()
    compiler = os.environ.get("CXX", "g++").split()
    command = [*compiler, *flags, str(SOURCE), *objects, "-o", str(program)]
    # What checks this interpreter (see tests/sanitize.sh) would only be in the way of the compiler,
    # and of a program that has its own.
    plain = {name: value for name, value in os.environ.items() if name not in FOR_PYTHON}
    subprocess.run(command, check=True, capture_output=True, env=plain)
    run = [str(program), str(SECONDS[sanitizer]), str(seed % 2**31)]
    if sanitizer == "thread":  # Which cannot live with much address randomisation.
        run = ["setarch", "-R", *run]
    ran = subprocess.run(run, capture_output=True, text=True, env=plain)
    assert ran.returncode == 0, ran.stderr
    assert "messages" in ran.stdout
