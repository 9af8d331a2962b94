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
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-pthread", "-shared"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
if os.environ.get("TENT_SANITIZE") == "address":
    FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def native_module(name: str, sources: Sequence[str]) -> ModuleType:
    """The module of tests/native/<name>.cpp, linked with `sources` (glob patterns below csrc)."""
    files = [ROOT / "tests/native" / f"{name}.cpp"]
    for pattern in sources:
        files += sorted((ROOT / "csrc").glob(pattern))
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in [*files, *sorted((ROOT / "csrc").rglob("*.h"))]:
        digest.update(path.read_bytes())
    folder = ROOT / "build/tests" / f"{name}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            compile_module(files, made)
    return load(name, made)


def compile_module(files: Sequence[Path], made: Path) -> None:
    """Compiles all files in one call of the compiler; its message is in the error."""
    system = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    partial = made.with_suffix(".partial")
    command = ["g++", *FLAGS, *WARNINGS, f"-I{ROOT / 'csrc'}", *system, *map(str, files)]
    command += ["-o", str(partial)]
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    if done.returncode != 0:
        raise RuntimeError(f"the native test module was not compiled:\n{done.stderr}")
    partial.rename(made)


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
