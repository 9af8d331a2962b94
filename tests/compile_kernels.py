"""Stage: tests of the kernels. Compiles them for a GPU (sm_90) that need not be there.

A program of test_kernel_code.py: prints, as JSON, which loads and stores each kernel's code has.
Run without TRITON_INTERPRET: the interpreter accepts much that the compiler does not.
"""

from __future__ import annotations

import json
import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from triton_kernels.pack import _copy_blocks, _float8_blocks
from triton_kernels.unpack import _scatter_blocks

STEPS = ("block_step", "token_step", "run_step", "start")
COMMON = {"base": "*i64", "offsets": "*i64", "blocks": "*i64", "data": "*i64", "sums": "*i32"}
COMMON |= {"words": "i32", "elements": "i32", "scales": "*fp32", "packed_tokens": "i32"}
COMMON |= dict.fromkeys(STEPS, "i32")
HALF = {"base": "*bf16", "data": "*u8"}
# As the launchers give them for blocks whose every part is a multiple of 16 bytes.
ALIGNED = ("base", "data", "words", "elements", *STEPS)

CASES: list[tuple[str, Any, dict[str, str], dict[str, Any]]] = [
    ("copy", _copy_blocks, {}, {"run": 4096, "runs": 1, "word_bytes": 8, "with_sums": False}),
    ("copy heads", _copy_blocks, {}, {"run": 32, "runs": 2, "word_bytes": 8, "with_sums": True}),
    ("float8", _float8_blocks, HALF, {"run": 2048, "runs": 1, "with_sums": True}),
    ("scatter", _scatter_blocks, {}, {"run": 256, "runs": 1, "word_bytes": 8, "float8": False}),
    (
        "scatter alike",
        _scatter_blocks,
        {},
        {"run": 256, "runs": 1, "word_bytes": 8, "float8": False, "alike": True},
    ),
    ("scatter float8", _scatter_blocks, HALF, {"run": 256, "runs": 4, "word_bytes": 2}),
]
DEFAULTS = {"tokens": 16, "size": 2048, "by_hand": False, "with_sums": True, "float8": True}
DEFAULTS |= {"alike": False}


def accesses(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> list[str]:
    """The distinct loads and stores of global memory in the kernel's PTX."""
    given = {**DEFAULTS, **constants, "aligned": 16 // constants.get("word_bytes", 2)}
    known = {name: given[name] for name in kernel.arg_names if name in given}
    signature = {
        name: "constexpr" if name in known else {**COMMON, **types}[name]
        for name in kernel.arg_names
    }
    hints = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(kernel.arg_names)
        if name in ALIGNED
    }
    source = ASTSource(kernel, signature, known, hints)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return sorted(set(re.findall(r"(?:ld|st)\.global[.\w]*", code)))


if __name__ == "__main__":
    print(json.dumps({name: accesses(*rest) for name, *rest in CASES}))
