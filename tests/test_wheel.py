"""Stage: tests. The wheel holds what it should, runs from where it is installed, and says in one
sentence that it is for another torch; what needs no process group works with any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TWO_RANKS = """
import sys, tempfile, torch, torch.distributed as dist, torch.multiprocessing as mp
def member(rank, meeting):
    dist.init_process_group("tent", init_method=f"file://{meeting}", rank=rank, world_size=2)
    x = torch.full((5,), rank + 1.0)
    dist.all_reduce(x)
    dist.destroy_process_group()
    assert x.tolist() == [3.0] * 5, x
if __name__ == "__main__":
    import torch_tent
    print(torch_tent.__file__)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(member, (folder + "/meeting",), 2)
"""
NO_GROUP = """
import tempfile, torch, torch.distributed as dist, torch_tent as tent
there, here = tent.Engine(), tent.Engine()
x, y = torch.zeros(1000), torch.arange(1000.0)
ticket = there.register(x, access="read-write").ticket()
here.write(y, here.open(ticket)).wait(20)
assert torch.equal(x, y)
print("moved")
with tempfile.TemporaryDirectory() as folder:
    dist.init_process_group("tent", init_method=f"file://{folder}/m", rank=0, world_size=1)
"""


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = os.environ | {"PYTHONNOUSERSITE": "1"} | environment
    return subprocess.run(command, cwd=cwd, env=everything, capture_output=True, text=True)


def build_wheel(folder: Path) -> Path:
    """Builds and repairs the wheel as `make wheel` does, in a copy of the tree with what is
    compiled already."""
    tree, compiled = folder / "tree", f"build/{sysconfig.get_config_var('SOABI')}"
    subprocess.run([ROOT / "tests/copy_tree.sh", tree], check=True)
    if (ROOT / compiled).exists():
        shutil.copytree(ROOT / compiled, tree / compiled)
    # What is installed is ours, and ready: -o says so.
    made = run(
        ["make", "wheel", "-o.venv/.ready", f"PY={sys.executable}", f"DIST={folder}/dist"], tree
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = (folder / "dist").iterdir()
    return wheel


@pytest.mark.timeout(300)
def test_the_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run([ROOT / "tests/copy_tree.sh", tree], check=True)
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path)]
    made = run(build, tree)
    assert made.returncode == 0, made.stdout + made.stderr
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder, kinds in {"csrc": ("*.h", "*.cpp"), "torch_tent": ("*.py", "*.pyi")}.items():
        for kind in kinds:
            needed = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(kind)}
            assert needed
            assert needed <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "torch_tent_autoload.py"} <= names


@pytest.mark.timeout(900)
def test_the_wheel(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    assert "-manylinux_2_" in wheel.name
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    installed = run([*pip, str(target), str(wheel)], tmp_path)
    assert installed.returncode == 0, installed.stderr

    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "torch_tent").rglob("*")
        if path.suffix in {".py", ".pyi", ".txt", ".typed"}
    }
    found = {
        path.relative_to(target).as_posix()
        for path in target.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and ".dist-info" not in path.parent.name
        and path.parent.name != "licenses"
    }
    major, minor = torch.__version__.split(".")[:2]
    shim = f"torch_tent/_c10d_torch_{major}_{minor}"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    native = {f"{name}{suffix}" for name in ("torch_tent/_engine", "torch_tent/_simulator", shim)}
    assert found == {*sources, "torch_tent/py.typed", "torch_tent_autoload.py", *native}

    (tmp_path / "two_ranks.py").write_text(TWO_RANKS)
    ran = run([sys.executable, "two_ranks.py"], tmp_path, PYTHONPATH=str(target))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(target / "torch_tent/__init__.py")

    (target / f"{shim}{suffix}").rename(target / f"torch_tent/_c10d_torch_2_99{suffix}")
    ran = run([sys.executable, "-c", NO_GROUP], tmp_path, PYTHONPATH=str(target))
    assert ran.stdout == "moved\n", ran.stderr
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"ImportError: this torch_tent has no process group for PyTorch {torch.__version__} "
        "(it was built for 2.99): build it again with `pip install "
    ), ran.stderr
