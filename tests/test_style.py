"""Keeps the code's shape: widths, sizes, orphan files, first lines, and words that say nothing.

The rules are crisp on purpose: there is no list of exemptions. A file that breaks one is missing a
noun; find it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["torch_tent", "csrc", "tests", "triton_kernels", "benchmarks"]
WIDTH_MAX = 100
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PUBLIC_METHODS_MAX = 15
EMPTY_WORDS = {"task", "job", "batch", "handle", "manager", "helper", "util", "impl"}
EMPTY_WORDS |= {word + "s" for word in EMPTY_WORDS} | {"batches"}

SOURCES = sorted(
    path
    for path in [*ROOT.glob("*.py"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*"))]
    if path.suffix in {".py", ".pyi", ".h", ".cpp"}
)
PYTHON = [path for path in SOURCES if path.suffix in {".py", ".pyi"}]
CPP = [path for path in SOURCES if path.suffix in {".h", ".cpp"}]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=short)


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@each(SOURCES)
def test_width_and_size(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [(n, len(line)) for n, line in enumerate(lines, 1) if len(line) > WIDTH_MAX] == []
    assert len(lines) <= FILE_LINES_MAX


@each(SOURCES)
def test_first_lines_say_what_the_file_is(path: Path) -> None:
    if path.suffix in {".h", ".cpp"}:
        assert path.read_text().startswith(("// ", "/* ")), (
            "begin with a comment that names the stage"
        )
    else:
        assert ast.get_docstring(syntax(path)), "begin with a docstring that names the stage"


@each(PYTHON)
def test_python_functions_are_short_and_classes_are_narrow(path: Path) -> None:
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES_MAX, node.name
        elif isinstance(node, ast.ClassDef):
            assert len(public_methods(node)) <= PUBLIC_METHODS_MAX, node.name


def public_methods(node: ast.ClassDef) -> set[str]:
    """The names of a class's own public methods; a property or overload counts once."""
    defined = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return {n.name for n in defined if not n.name.startswith("_")}


@each(CPP)
def test_cpp_functions_are_short(path: Path) -> None:
    """clang-format closes a function of namespace scope with a brace alone in the first column."""
    began = 1
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line == "}":
            assert number - began + 1 <= FUNCTION_LINES_MAX, f"the function in line {began}"
        # A definition begins after an empty line or the end of another; its comment is not counted.
        if not line or line.startswith(("}", "//", "#")):
            began = number + 1
    assert began > 1


@each([path for path in CPP if path.suffix == ".cpp"])
def test_every_cpp_file_has_its_header(path: Path) -> None:
    """Named like it, like the first part of its name (`session_time.cpp`, `session.h`) or like its
    folder; apart from those that nobody includes: Python bindings, programs, fuzz targets."""
    entries = r'^(PYBIND11_MODULE\(|int main\(|extern "C" int LLVMFuzzerTestOneInput\()'
    entry = re.search(entries, path.read_text(), re.MULTILINE)
    names = [path.stem, path.stem.split("_")[0], path.parent.name]
    assert entry or any((path.parent / f"{name}.h").exists() for name in names)


@each([path for path in CPP if path.suffix == ".h"])
def test_every_header_is_included(path: Path) -> None:
    # Sources name the headers of csrc from there, and those of the tests by their own name.
    inside = path.is_relative_to(ROOT / "csrc")
    name = path.relative_to(ROOT / "csrc").as_posix() if inside else path.name
    assert any(f'#include "{name}"' in other.read_text() for other in CPP)


@each([path for path in PYTHON if path.is_relative_to(ROOT / "torch_tent")])
def test_every_module_is_imported_or_an_entry(path: Path) -> None:
    if path.suffix == ".pyi":  # Types of a native module; mypy says when they are out of place.
        return
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if path.name in {"__init__.py", "__main__.py"} or name in entry_points():
        return
    users = [p for p in PYTHON if p != path and not p.is_relative_to(ROOT / "tests")]
    assert any(name in imports(user) for user in users)


def entry_points() -> set[str]:
    """The modules that pyproject.toml names for others to load."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project.get("scripts", {}), *project.get("entry-points", {}).values()]
    return {target.partition(":")[0] for group in groups for target in group.values()}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, by full name; `from a import b` may mean a.b."""
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


@each(SOURCES)
def test_names_say_something(path: Path) -> None:
    defined = python_names(path) if path in PYTHON else cpp_names(path)
    names = [*path.relative_to(ROOT).with_suffix("").parts, *defined]
    assert {name: sorted(found) for name in names if (found := empty_words(name))} == {}


def python_names(path: Path) -> Iterator[str]:
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


CPP_TYPE = re.compile(r"^\s*(?:class|struct|union|enum(?: class)?|namespace|using)\s+(\w+)")
CPP_FUNCTION = re.compile(
    r"^\s*(?!return |else |throw |new |delete |case )"
    r"[\w:<>,&*\s]*[\w>&*]\s+[&*]*(?:\w+::)*~?(\w+)\("
)


def cpp_names(path: Path) -> Iterator[str]:
    """Types, namespaces and functions that the file declares or defines."""
    for line in path.read_text().splitlines():
        for pattern in (CPP_TYPE, CPP_FUNCTION):
            if match := pattern.match(line):
                yield match.group(1)


TORCH_OVERRIDDEN = "getStreamNativeHandle"  # in the tests' own CUDA
TORCH_NAMES = [name for name in dir(torch.distributed) if not name.startswith("_")]


def empty_words(name: str) -> set[str]:
    """The words of a snake or camel case name that say nothing; torch's own names do not count."""
    for theirs in TORCH_NAMES:
        if "_" in theirs:
            name = name.replace(theirs, "")
    name = name.replace(TORCH_OVERRIDDEN, "")
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return {word.lower() for word in words} & EMPTY_WORDS


def test_the_words_are_found_where_they_are() -> None:
    assert empty_words("slice_batch") == {"batch"}
    assert empty_words("TaskManager") == {"task", "manager"}
    assert empty_words("IOHandles") == {"handles"}
    assert empty_words("test_batch_isend_irecv_with_tags") == set()
    assert empty_words("jobless_simplicity") == set()
