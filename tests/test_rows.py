"""Tests of triton_kernels/rows.py against its reference, and of its code in the engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from triton_kernels.rows import ROW_WORDS_MAX, launch, move_rows_reference

from .paged_caches import DEVICE

triton: Any = pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "csrc/device/rows_ptx.cpp"


def scattered(words: list[int], memory: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """A table of rows with these lengths, at places by chance in the two memories."""
    room = (ROW_WORDS_MAX + 2) * 8
    sources, targets = torch.randperm(len(words)), torch.randperm(len(words))
    rows = [
        (memory.data_ptr() + int(s) * room, to.data_ptr() + int(t) * room, count)
        for s, t, count in zip(sources, targets, words, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int64)


@pytest.mark.parametrize("words", [[2], [2048], [2, 4, 2046, 2048, 256, 1030, 258], [64] * 150])
@pytest.mark.parametrize("programs", [1, 3, 128])
def test_it_moves_what_the_reference_moves(words: list[int], programs: int) -> None:
    size = len(words) * (ROW_WORDS_MAX + 2)
    memory = torch.randint(-(1 << 62), 1 << 62, (size,)).to(DEVICE)
    wanted, found = (torch.full((size,), 0x5A5A5A5A).to(DEVICE) for _ in range(2))
    table = scattered(words, memory, found)
    launch(table.to(DEVICE), min(programs, len(words)))
    host, reference = memory.cpu(), wanted.cpu()
    for row in table:
        row[0] += host.data_ptr() - memory.data_ptr()
        row[1] += reference.data_ptr() - found.data_ptr()
    move_rows_reference(table)
    assert torch.equal(found.cpu(), reference)


def written_with() -> str:
    found = re.search(r"with Triton ([\w.]+)", CODE.read_text())
    assert found is not None
    return found[1]


def test_the_engine_has_what_the_compiler_makes(tmp_path: Path) -> None:
    if written_with() != triton.__version__:
        pytest.skip(f"the code was written with Triton {written_with()}, not {triton.__version__}")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    made = subprocess.run(
        [sys.executable, "-c", "from triton_kernels.rows_ptx import text; print(text(), end='')"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == CODE.read_text(), "run `python -m triton_kernels.rows_ptx`"


def test_the_engine_launches_what_the_code_says() -> None:
    """The parameters and threads of the entry, and 16 bytes at a time."""
    code = CODE.read_text()
    entry = re.search(r"\.entry move_rows\((.*?)\)\s*\.reqntid (\d+)", code, re.DOTALL)
    assert entry is not None
    types = re.findall(r"\.param \.(u\d+)", entry[1])
    assert types == ["u64", "u32", "u64", "u64"]
    engine = (ROOT / "csrc/device/rows.h").read_text()
    assert f"kThreads = {entry[2]}," in engine
    assert f"kBytes = {ROW_WORDS_MAX * 8 >> 10}u << 10" in engine
    wide = set(re.findall(r"[ls][dt]\.global\.v\S+", code))
    assert {"ld.global.v2.b64", "st.global.v2.b64"} <= wide


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_the_code_is_taken_by_the_assembler(tmp_path: Path, gpu: str) -> None:
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    if not assembler.exists():
        pytest.skip("this Triton has no ptxas")
    found = re.search(r'R"ptx\((.*)\)ptx"', CODE.read_text(), re.DOTALL)
    assert found is not None
    source = tmp_path / "rows.ptx"
    source.write_text(found[1])
    words = [str(assembler), f"-arch={gpu}", str(source), "-o", str(tmp_path / "rows.cubin")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr
