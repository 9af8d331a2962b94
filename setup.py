"""Stage: build. One ninja graph makes the native modules, and rebuilds only what has changed.

`torch_tent._engine` and `torch_tent._simulator` know nothing of torch; the simulator compiles
csrc/core once more, with the switches that break a rule on purpose. `torch_tent._c10d_torch_X_Y`
is the only module compiled against torch's headers, and named after torch's minor version, which is
how long its ABI lasts: those for several can lie side by side, and none is loaded into another. A
module whose folder has no sources yet is left out.
setuptools decides where the modules go; everything else happens here.

    python setup.py build_ext --inplace                        # the incremental build
    TENT_SANITIZE=thread python setup.py build_ext --inplace   # or address: see tests/sanitize.sh

torch's BuildExtension is not used: it gives csrc/core's two builds the same object files, so that
each undoes the other, relinks every time, and imports torch, which costs more than a whole
incremental build of the engine.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILE_FLAGS = shlex.split(
    "-std=c++20 -O3 -g0 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -pthread "
    "-Wall -Wextra -Icsrc"
)
if os.environ.get("BUILD_WERROR"):  # The Makefile says so; another compiler may warn of more.
    COMPILE_FLAGS.append("-Werror")
# A compiler that links the C++ library statically must not give torch's libraries ours.
LINK_FLAGS = shlex.split("-shared -pthread -Wl,-O1 -Wl,--as-needed -Wl,--exclude-libs,ALL")
SANITIZE_FLAGS = shlex.split("-O1 -g1 -fno-omit-frame-pointer")
SANITIZERS = {
    "": [],
    # It knows nothing of fences, and warns; ours order accesses that are atomic themselves.
    "thread": ["-fsanitize=thread", "-Wno-tsan"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}
# torch's libraries are not instrumented, so its module would prove nothing; nor would the
# simulator, which has one thread, with the thread sanitizer.
SANITIZED_KINDS = {"thread": ["engine"], "address": ["engine", "simulator"]}


@dataclass(frozen=True)
class Module:
    """One native module. Its kind names the flags, and the folder of its objects."""

    name: str
    kind: str
    sources: tuple[str, ...]


def sources_in(*folders: str) -> tuple[str, ...]:
    """Every .cpp below the folders, sorted, relative to the root: builds must be reproducible."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.cpp"))
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in found))


def modules() -> list[Module]:
    """The modules that have sources of their own."""
    c10d, simulator = sources_in("csrc/c10d"), sources_in("csrc/simulator")
    apart = {*c10d, *simulator}
    engine = tuple(source for source in sources_in("csrc") if source not in apart)
    pure = sources_in("csrc/core") if simulator else ()
    listed = [
        Module("torch_tent._engine", "engine", engine),
        Module("torch_tent._simulator", "simulator", tuple(sorted(simulator + pure))),
        Module(f"torch_tent.{c10d_name()}", "c10d", c10d),
    ]
    kinds = SANITIZED_KINDS.get(sanitizer(), [module.kind for module in listed])
    return [module for module in listed if module.sources and module.kind in kinds]


def c10d_name() -> str:
    """What the module for the installed torch is called; torch_tent/process_group.py uses it."""
    torch = installed_torch()
    # Without torch nothing is built, but the package's name and version can be asked for.
    text = (torch / "version.py").read_text() if torch else ""
    version = re.search(r"__version__ = '(\d+)\.(\d+)", text)
    return "_c10d_torch_" + "_".join(version.groups() if version else ("none",))


def installed_torch() -> Path | None:
    """The folder of the installed torch, found without importing it.

    pip hides installed packages from an isolated build, but not the folder where they are.
    """
    places = [Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib")]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        places.insert(0, Path(spec.origin).parent)
    for place in places:
        if (place / "include/torch/csrc").is_dir():
            return place
    return None


def needed_torch() -> Path:
    """The folder of the installed torch; ends the build where there is none."""
    found = installed_torch()
    if found is None:
        raise SystemExit(
            "torch_tent is compiled against the installed PyTorch, and there is none in this "
            f"environment ({sys.prefix}): run `pip install torch` first, then "
            "`pip install --no-build-isolation .` (or `make setup`, which does both), or "
            "`python -m build --wheel --no-isolation` for a wheel."
        )
    return found


def system_headers(*folders: str | Path) -> list[str]:
    """Flags for headers of others: without their warnings, and without their place in the build."""
    flags = []
    for folder in folders:
        flags += ["-isystem", str(folder), f"-ffile-prefix-map={folder}={Path(folder).name}"]
    return flags


def kind_flags(kind: str) -> tuple[list[str], list[str]]:
    """The flags for compiling and linking one kind of module, beside the common ones."""
    python_headers = sysconfig.get_path("include")
    if not (Path(python_headers) / "Python.h").is_file():
        raise SystemExit(
            f"Python.h is not in {python_headers}: install Python's development files "
            "(Debian and Ubuntu: `apt-get install python3-dev`)."
        )
    if kind != "c10d":
        import pybind11

        switches = ["-DTENT_SABOTAGE"] if kind == "simulator" else []
        return [*switches, *system_headers(pybind11.get_include(), python_headers)], []
    # torch brings the pybind11 that its own types are bound with: another one would not know them.
    torch = needed_torch()
    headers = system_headers(
        torch / "include", torch / "include/torch/csrc/api/include", python_headers
    )
    defines = ["-DTORCH_API_INCLUDE_EXTENSION_H", f"-DTENT_C10D_MODULE={c10d_name()}"]
    libraries = [f"-L{torch / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
    return [*defines, *headers], libraries


def compiler() -> str:
    """The C++ compiler: $CXX where it is set, else g++ or c++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    for name in names:
        if shutil.which(shlex.split(name)[0]):
            return name
    raise SystemExit(
        f"There is no C++ compiler {' or '.join(names)} here: install g++ (Debian and Ubuntu: "
        "`apt-get install g++`) or set CXX to a compiler that knows C++20."
    )


def ninja() -> str:
    """The ninja program, from its Python package or from the system."""
    if importlib.util.find_spec("ninja") is not None:
        import ninja as package

        return os.path.join(package.BIN_DIR, "ninja")
    found = shutil.which("ninja")
    if found is None:
        raise SystemExit("ninja is not installed: run `pip install ninja`.")
    return found


def sanitizer() -> str:
    """What TENT_SANITIZE asks for: thread, address or nothing."""
    wanted = os.environ.get("TENT_SANITIZE", "")
    if wanted not in SANITIZERS:
        raise SystemExit(f"TENT_SANITIZE is {wanted!r}: it can be thread, address or unset.")
    return wanted


def for_ninja(words: list[str]) -> str:
    """Flags as ninja wants them: quoted for the shell, with ninja's own $ doubled."""
    return shlex.join(words).replace("$", "$$")


def graph(listed: list[Module], folder: Path, suffix: str) -> str:
    """The ninja file. Paths in it are relative to the root, so that no build names a machine."""
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    link_extra = shlex.split(os.environ.get("LDFLAGS", ""))
    if sanitizer():
        extra = [*SANITIZE_FLAGS, *SANITIZERS[sanitizer()], *extra]
        link_extra = [*SANITIZERS[sanitizer()], *link_extra]
    lines = [
        f"builddir = {folder}",
        "rule compile",
        f"  command = {compiler()} -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        "rule link",
        f"  command = {compiler()} $in -o $out $flags",
        "  description = link $out",
    ]
    for kind in sorted({module.kind for module in listed}):
        compile_flags, link_flags = kind_flags(kind)
        lines.append(f"compile_{kind} = {for_ninja([*COMPILE_FLAGS, *compile_flags, *extra])}")
        lines.append(f"link_{kind} = {for_ninja([*LINK_FLAGS, *link_flags, *link_extra])}")
    objects: dict[str, str] = {}
    for module in listed:
        for source in module.sources:
            made = f"{folder}/{module.kind}/{source.removesuffix('.cpp')}.o"
            objects[made] = f"build {made}: compile {source}\n  flags = $compile_{module.kind}"
    lines += objects.values()
    for module in listed:
        parts = [f"{folder}/{module.kind}/{s.removesuffix('.cpp')}.o" for s in module.sources]
        target = f"{folder}/{module.name.rpartition('.')[2]}{suffix}"
        lines.append(f"build {target}: link {' '.join(parts)}\n  flags = $link_{module.kind}")
    return "\n".join(lines) + "\n"


class BuildWithNinja(build_ext):
    """Compiles and links with ninja, then puts each module where setuptools wants it."""

    def build_extensions(self) -> None:
        # Copy even what is older than its target: the target may be a sanitizer's build.
        self.force = True
        needed_torch()
        listed = modules()
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        tag = "-".join(filter(None, [sysconfig.get_config_var("SOABI"), sanitizer()]))
        folder = Path("build") / tag
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        (ROOT / folder / "build.ninja").write_text(graph(listed, folder, suffix))
        command = [ninja(), *([] if self.verbose else ["--quiet"])]
        made = subprocess.run([*command, "-f", str(folder / "build.ninja")], cwd=ROOT)
        if made.returncode != 0:
            raise SystemExit("The native modules were not built: the compiler's message is above.")
        for module in listed:
            target = Path(self.get_ext_fullpath(module.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            built = ROOT / folder / f"{module.name.rpartition('.')[2]}{suffix}"
            self.copy_file(str(built), str(target))


setup(
    ext_modules=[Extension(module.name, list(module.sources)) for module in modules()],
    cmdclass={"build_ext": BuildWithNinja},
)
