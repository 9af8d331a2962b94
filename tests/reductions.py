"""Stage: tests. What reductions should give, computed by torch alone, and the numbers of the C API.

Imported by the tests of collectives, on any thread; no state.
"""

from __future__ import annotations

import torch

# As in csrc/engine/c_api.h.
DTYPES = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool, torch.uint16,
    torch.uint32, torch.uint64,
]  # fmt: skip
OPS = ["SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR"]
KINDS = [
    "broadcast", "all_reduce", "reduce", "all_gather", "gather", "scatter", "reduce_scatter",
    "all_to_all", "barrier",
]  # fmt: skip
BITWISE = {"BAND", "BOR", "BXOR"}
# torch has storage for these, but little arithmetic.
BARELY_SUPPORTED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def is_defined(op: str, dtype: torch.dtype) -> bool:
    """Whether the operation makes sense for the dtype."""
    if op in BITWISE:
        return not (dtype.is_floating_point or dtype.is_complex)
    if dtype.is_complex:
        return op not in {"MIN", "MAX"}
    return not (dtype == torch.bool and op == "AVG")


def whole_numbers(
    count: int, dtype: torch.dtype, op: str, generator: torch.Generator
) -> torch.Tensor:
    """Random values whose reductions are exact in every dtype, whatever the order: [count]."""
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).bool()
    signed = dtype.is_signed
    if op == "PRODUCT":
        values = torch.randint(1, 3, (count,), generator=generator)
        return (values * (1 - 2 * torch.randint(0, 2, (count,), generator=generator) * signed)).to(
            dtype
        )
    low = -8 if signed else 0
    values = torch.randint(low, 9, (count,), generator=generator)
    if dtype.is_complex:
        other = torch.randint(low, 9, (count,), generator=generator)
        return torch.complex(values.double(), other.double()).to(dtype)
    return values.to(dtype)


def reduced(op: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The reduction of all ranks' parts, of equal shape and dtype."""
    dtype = parts[0].dtype
    wide = BARELY_SUPPORTED.get(dtype, dtype)
    stack = [part.to(wide) for part in parts]
    total = stack[0].clone()
    for part in stack[1:]:
        total = combined(op, total, part)
    if op == "AVG":
        total = divided(total, len(parts))
    return total.to(dtype)


def combined(op: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """One step of a reduction, in the tensors' dtype."""
    if a.dtype == torch.bool:
        return (a & b) if op in {"PRODUCT", "MIN", "BAND"} else (a ^ b) if op == "BXOR" else a | b
    match op:
        case "SUM" | "AVG":
            return a + b
        case "PRODUCT":
            return a * b
        case "MIN":
            return torch.minimum(a, b)
        case "MAX":
            return torch.maximum(a, b)
        case "BAND":
            return a & b
        case "BOR":
            return a | b
        case _:
            return a ^ b


def divided(total: torch.Tensor, by: int) -> torch.Tensor:
    """The second half of an average; integers round towards zero."""
    if total.dtype.is_complex:
        return torch.view_as_complex(torch.view_as_real(total) / by)
    if total.dtype.is_floating_point:
        return total / by
    return torch.div(total, by, rounding_mode="trunc")
