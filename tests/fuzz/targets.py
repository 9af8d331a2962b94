"""Stage: tests, fuzzing. Builds the C++ targets of tests/native/fuzz_*.cpp: for libFuzzer, with
clang; or, with any compiler, as programs that only replay a corpus.

Called by the command and by the regression test, on their own thread. What always holds: a target
links the pure core and the reader of frames, nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = Path(__file__).resolve().parent / "corpus"
TARGETS = ("wire", "frames")
SOURCES = ("core/*.cpp", "transports/frame_reader.cpp", "transports/inline_slices.cpp")
COMMON = ["-std=c++20", "-O1", "-g1", f"-I{ROOT / 'csrc'}"]
SANITIZERS = "address,undefined"
# The newest first; Debian and Ubuntu put the version into the name.
CLANGS = ["clang++", *(f"clang++-{version}" for version in range(25, 13, -1))]


def clang() -> str | None:
    """A clang that has libFuzzer, if there is one."""
    return next((name for name in CLANGS if shutil.which(name)), None)


def build_fuzzers(compiler: str, folder: Path) -> dict[str, Path]:
    """The targets with libFuzzer and sanitizers, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*COMMON, "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
    sources = [path for pattern in SOURCES for path in sorted((ROOT / "csrc").glob(pattern))]
    sources += [ROOT / "tests/native" / f"fuzz_{name}.cpp" for name in TARGETS]
    objects = {source: folder / f"{source.parent.name}-{source.stem}.o" for source in sources}

    def compile_one(source: Path) -> None:
        instrument = f"-fsanitize=fuzzer-no-link,{SANITIZERS}"
        run([compiler, *flags, instrument, "-c", str(source), "-o", str(objects[source])])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))
    pure = [str(made) for source, made in objects.items() if source.parent.name != "native"]
    made = {}
    for name in TARGETS:
        made[name] = folder / f"fuzz_{name}"
        target = str(objects[ROOT / "tests/native" / f"fuzz_{name}.cpp"])
        run([compiler, f"-fsanitize=fuzzer,{SANITIZERS}", target, *pure, "-o", str(made[name])])
    return made


def build_replay(name: str, objects: Sequence[Path], flags: Sequence[str], made: Path) -> None:
    """A target as a program that runs each file of a folder, linked with compiled sources."""
    compiler = os.environ.get("CXX", "g++").split()
    sources = [str(ROOT / "tests/native" / f"{file}.cpp") for file in (f"fuzz_{name}", "replay")]
    words = [*COMMON, "-Wall", "-Wextra", "-Werror", "-pthread", *flags]
    run([*compiler, *words, *sources, *map(str, objects), "-o", str(made)])


def run(command: Sequence[str]) -> None:
    """Calls the compiler; its message is the error."""
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    if done.returncode != 0:
        raise RuntimeError(f"a fuzz target was not built:\n{done.stderr}")
