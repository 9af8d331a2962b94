"""Stage: kernels. Compiles move_rows into the engine: `python -m triton_kernels.rows_ptx` writes
csrc/device/rows_ptx.cpp.

A program of whoever changes the kernel; needs no GPU. What always holds: the code runs on every GPU
from sm_80 on, whose driver compiles it for itself, and on drivers from CUDA 12.0 on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .rows import ROW_WORDS_MAX, WARPS, move_rows

TARGET, PTX_VERSION = 80, 80
FILE = Path(__file__).resolve().parent.parent / "csrc/device/rows_ptx.cpp"
TEXT = """\
// Stage: device. The code of move_rows for GPUs; see rows.h. Written by
// `python -m triton_kernels.rows_ptx` with Triton {version}; not to be edited.
#include "device/rows.h"

namespace tent {{

const char* const kMoveRowsCode = R"ptx(
{code})ptx";

}}  // namespace tent
"""


def code() -> str:
    """The kernel as PTX, without remarks."""
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    kernel: Any = move_rows
    signature = {"table": "*i64", "rows": "i32", "size": "constexpr"}
    hints: Any = {(0,): [["tt.divisibility", 16]]}
    source = ASTSource(kernel, signature, {"size": ROW_WORDS_MAX}, hints)
    options = {"num_warps": WARPS, "ptx_version": PTX_VERSION}
    made = triton.compile(source, target=GPUTarget("cuda", TARGET, 32), options=options)
    if made.metadata.shared or made.metadata.global_scratch_size:
        raise RuntimeError("move_rows needs memory that the engine does not give it")
    lines = [line.split("//")[0].rstrip() for line in made.asm["ptx"].splitlines()]
    # Indented, so that no brace of it ends a line of C++.
    return "".join(f"  {line.strip()}\n" for line in lines if line)


def text() -> str:
    """The file's content with the installed Triton."""
    return TEXT.format(version=triton.__version__, code=code())


if __name__ == "__main__":
    FILE.write_text(text())
