"""Stage: tests. Compiles a small native module of tests/native against the sources it tests.

Called by fixtures, on the test's thread. What always holds: a module is compiled once per content
of its sources, into the build folder, also when several pytest workers want it at the same time.
With TENT_SANITIZE=address in the environment (see tests/sanitize.sh) it has the sanitizers.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
if os.environ.get("TENT_SANITIZE") == "address":
    FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def native_module(name: str, sources: Sequence[str], torch: bool = False) -> ModuleType:
    """The module of tests/native/<name>.cpp and <name>_*.cpp, linked with `sources` (glob patterns
    below csrc). `torch`: it includes torch's headers, and takes minutes to compile."""
    own = ROOT / "tests/native"
    files = [own / f"{name}.cpp", *sorted(own.glob(f"{name}_*.cpp"))]
    for pattern in sources:
        files += sorted((ROOT / "csrc").glob(pattern))
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    headers = sorted([*(ROOT / "csrc").rglob("*.h"), *own.glob("*.h")])
    for path in [*files, *headers]:
        digest.update(path.read_bytes())
    folder = ROOT / "build/tests" / f"{name}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            compile_module(files, made, torch)
    return load(name, made)


def compile_module(files: Sequence[Path], made: Path, torch: bool = False) -> None:
    """Compiles all files, two at a time, and links them; the compiler's message is in the error."""
    partial = made.with_suffix(".partial")
    objects = [made.parent / f"{number}-{path.stem}.o" for number, path in enumerate(files)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: compile_one(*pair, torch), zip(files, objects, strict=True)))
    libraries = torch_libraries() if torch else []
    run_compiler(["-shared", *map(str, objects), *libraries, "-o", str(partial)])
    partial.rename(made)


def compile_one(source: Path, made: Path, torch: bool = False) -> None:
    """One object file."""
    # torch brings the pybind11 that its own types are bound with.
    folders = cpp_extension.include_paths() if torch else [pybind11.get_include()]
    folders.append(sysconfig.get_path("include"))
    system = [word for folder in folders for word in ("-isystem", folder)]
    include = f"-I{ROOT / 'csrc'}"
    run_compiler([*WARNINGS, include, *system, "-c", str(source), "-o", str(made)])


def torch_libraries() -> list[str]:
    """What links with torch."""
    folders = [f"-L{folder}" for folder in cpp_extension.library_paths()]
    return [*folders, "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]


def run_compiler(words: Sequence[str]) -> None:
    """Calls the compiler with the common flags."""
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    compiler = os.environ.get("CXX", "g++").split()
    done = subprocess.run([*compiler, *FLAGS, *words], capture_output=True, text=True, env=plain)
    if done.returncode != 0:
        raise RuntimeError(f"the native test module was not compiled:\n{done.stderr}")


def load(name: str, path: Path) -> ModuleType:
    """Imports an extension module from its file."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module
