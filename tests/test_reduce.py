"""Stage: tests. The arithmetic of reductions against torch's, bit by bit."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests.native_modules import native_module
from tests.reductions import BARELY_SUPPORTED, DTYPES, OPS, combined, divided, is_defined

COUNTS = [0, 1, 3, 7, 8, 17, 511, 512, 513, 5000]


# The first test compiles the native module, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def native() -> ModuleType:
    return native_module("collectives_world", ["collectives/*.cpp"])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, where any NaN equals any other, and +0 is not -0."""
    if a.dtype.is_complex:
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    both_nan = a.isnan() & b.isnan()
    return bool((both_nan | ((a == b) & (a.signbit() == b.signbit()))).all())


def values(count: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """All bit patterns of the dtype are possible, infinities and NaN among them."""
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).bool()
    patterns = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator)
    return patterns.to(torch.uint8).view(dtype)


def run(native: ModuleType, op: str, to: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    addresses = (to.data_ptr(), a.data_ptr(), b.data_ptr())
    native.combine(OPS.index(op), DTYPES.index(a.dtype), *addresses, a.nbytes)


def truth(op: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dtype in {torch.float16, torch.bfloat16}:
        return combined(op, a.float(), b.float()).to(a.dtype)
    if a.dtype.is_complex and op in {"SUM", "AVG"}:
        # torch multiplies b by a complex 1 first, and so spreads its NaN to both parts.
        return torch.view_as_complex(torch.view_as_real(a) + torch.view_as_real(b))
    if a.dtype in BARELY_SUPPORTED and op in {"MIN", "MAX"}:
        # int64 has no room for uint64: compare with the highest bit flipped.
        flip = torch.iinfo(torch.int64).min
        wide = [x.view(torch.int64) ^ flip if x.dtype == torch.uint64 else x.long() for x in (a, b)]
        best = combined(op, *wide)
        return (best ^ flip).view(a.dtype) if a.dtype == torch.uint64 else best.to(a.dtype)
    if a.dtype in BARELY_SUPPORTED:  # two's complement: signed arithmetic has the same bits
        signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
        return combined(op, a.view(signed), b.view(signed)).view(a.dtype)
    return combined(op, a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_every_reduction_gives_the_bits_of_torch(
    native: ModuleType, op: str, dtype: torch.dtype, seed: int
) -> None:
    if not is_defined(op, dtype):
        assert native.why_not(OPS.index(op), DTYPES.index(dtype)).startswith("Cannot use ReduceOp")
        return
    generator = torch.Generator().manual_seed(seed)
    for count in COUNTS:
        a, b = values(count, dtype, generator), values(count, dtype, generator)
        expected = truth(op, a, b)
        apart = torch.zeros_like(a)
        run(native, op, apart, a, b)
        if dtype.is_complex and op == "PRODUCT":
            finite = expected.isfinite() & apart.isfinite()
            torch.testing.assert_close(apart[finite], expected[finite], rtol=1e-5, atol=1e-5)
            continue
        assert same_bits(apart, expected)
        left, right = a.clone(), b.clone()
        run(native, op, left, left, b)
        run(native, op, right, a, right)
        assert same_bits(left, expected)
        assert same_bits(right, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [1, 4096])
def test_every_half_survives_the_way_through_f32(
    native: ModuleType, dtype: torch.dtype, step: int
) -> None:
    """One at a time takes the portable conversion, many at a time the processor's."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    ones, out = torch.ones_like(every), torch.zeros_like(every)
    for at in range(0, 65536, step):
        part = slice(at, at + step)
        run(native, "PRODUCT", out[part], every[part], ones[part])
    assert same_bits(out, every)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [1, 4096])
def test_halves_round_to_nearest_even(
    native: ModuleType, dtype: torch.dtype, step: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = values(40960, dtype, generator), values(40960, dtype, generator)
    for op in ("SUM", "PRODUCT"):
        out = torch.zeros_like(a)
        for at in range(0, len(a), step):
            part = slice(at, at + step)
            run(native, op, out[part], a[part], b[part])
        assert same_bits(out, truth(op, a, b))


def test_small_products_of_halves_round_to_denormals(native: ModuleType) -> None:
    """Products around 2^-24, the smallest half, ties among them."""
    a = torch.tensor([2.0**-14, 2.0**-14, 2.0**-14, 2.0**-13, 1.5 * 2.0**-14], dtype=torch.float16)
    b = torch.tensor([2.0**-10, 2.0**-11, 1.5 * 2.0**-11, 2.0**-12, 2.0**-10], dtype=torch.float16)
    for end in range(1, 6):
        out = torch.zeros_like(a)
        run(native, "PRODUCT", out[:end], a[:end], b[:end])
        assert same_bits(out[:end], (a.float() * b.float()).half()[:end])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ranks", [1, 3, 8, 200])
def test_averages_divide_as_torch_does(
    native: ModuleType, dtype: torch.dtype, ranks: int, seed: int
) -> None:
    if dtype == torch.bool:
        pytest.skip("booleans have no average")
    total = values(1000, dtype, torch.Generator().manual_seed(seed))
    if dtype in BARELY_SUPPORTED:
        total = (total.to(BARELY_SUPPORTED[dtype]).abs() // 2).to(dtype)
    wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32, **BARELY_SUPPORTED}
    wide[torch.int8] = torch.int32  # 200 is none
    expected = divided(total.to(wide.get(dtype, dtype)), ranks).to(dtype)
    native.divide(DTYPES.index(dtype), total.data_ptr(), total.nbytes, ranks)
    if dtype.is_complex:
        torch.testing.assert_close(total, expected, equal_nan=True)
    else:
        assert same_bits(total, expected)


def test_unknown_numbers_are_refused(native: ModuleType) -> None:
    assert "dtype 99" in native.why_not(0, 99)
    assert "reduction 99" in native.why_not(99, 0)
