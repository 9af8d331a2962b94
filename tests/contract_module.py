"""Stage: tests. Builds tests/native/transport_contract.cpp with the transports, and loads it.

Called by the transports' tests and their child processes, on their own thread. What always holds:
an object file is compiled once for each content of its source and of the headers; several
processes of pytest-xdist may ask at once, and one of them builds. `TENT_SANITIZE=address` in the
environment (the interpreter then needs libasan in LD_PRELOAD) builds with the sanitizers.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "transport_contract"
NAME = "transport_contract"
CORE, TRANSPORTS = ROOT / "csrc" / "core", ROOT / "csrc" / "transports"
DRIVERS = ROOT / "csrc" / "drivers"
DEVICE = ROOT / "csrc" / "device"
FAKE = [
    ROOT / "tests" / "native" / f"fake_{name}.cpp" for name in ("verbs", "memory", "fabric", "says")
]
SOURCES = [
    ROOT / "tests" / "native" / f"{NAME}.cpp",
    CORE / "layout.cpp",
    CORE / "wire.cpp",
    *(DEVICE / f"{name}.cpp" for name in ("arena", "copies", "rows", "rows_ptx")),
    *sorted(TRANSPORTS.rglob("*.cpp")),
    *sorted(DRIVERS.glob("*.cpp")),
]
HEADERS = [
    *(CORE / f"{name}.h" for name in ("types", "origin", "layout", "wire")),
    *TRANSPORTS.rglob("*.h"),
]
HEADERS += [*DRIVERS.glob("*.h"), *(DEVICE / f"{name}.h" for name in ("arena", "copies", "rows"))]
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-pthread"]
FLAGS += ["-Wall", "-Wextra", "-Werror"]
SANITIZERS = {
    "": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}


@cache
def contract() -> ModuleType:
    """The built module; compiles what has changed, which takes a minute at first."""
    path = build()
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def fake_verbs() -> str:
    """The file of the fake libibverbs."""
    BUILD.mkdir(parents=True, exist_ok=True)
    headers = [*DRIVERS.glob("*.h"), *FAKE[0].parent.glob("fake*.h")]
    library = BUILD / f"libfakeverbs-{digest([*FAKE, *sorted(headers)], ' '.join(FLAGS))}.so"
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            includes = [f"-I{folder}" for folder in (ROOT / "csrc", FAKE[0].parent)]
            run(["-shared", *FLAGS, *includes, *map(str, FAKE), "-o", f"{library}.new"])
            os.rename(f"{library}.new", library)
    return str(library)


def build() -> Path:
    """Compiles and links; returns the module's path."""
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = FLAGS + SANITIZERS[os.environ.get("TENT_SANITIZE", "")]
    common = digest(sorted(HEADERS), " ".join(flags) + pybind11.__version__)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: compile_one(source, flags, common), SOURCES))
        linked = BUILD / hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()[:16]
        linked.mkdir(exist_ok=True)
        module = linked / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not module.exists():
            run(["-shared", *flags, *map(str, objects), "-o", f"{module}.new"])
            os.rename(f"{module}.new", module)
    return module


def compile_one(source: Path, flags: list[str], common: str) -> Path:
    """The object file of one source, made unless it is there."""
    target = BUILD / f"{source.stem}-{digest([source], common)}.o"
    if not target.exists():
        includes = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
        options = [f"-I{folder}" for folder in includes]
        run([*flags, *options, "-c", str(source), "-o", f"{target}.new"])
        os.rename(f"{target}.new", target)
    return target


def digest(paths: list[Path], salt: str) -> str:
    """A short hash of the files' contents and of `salt`."""
    total = hashlib.sha256(salt.encode())
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def run(arguments: list[str]) -> None:
    """Runs the compiler; its messages are the error."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [*environment.get("CXX", "g++").split(), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"the transport contract does not compile:\n{done.stderr}")
