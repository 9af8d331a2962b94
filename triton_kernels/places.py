"""Stage: kernels. What pack and unpack share inside: where an element lies, its weight, float8.

Called by the kernels, on the GPU or in Triton's interpreter. What always holds: an element's number
counts in the packed order (token, head, head_dim); 64-bit offsets wherever a block number or a
token is multiplied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from .paged import Paged

WORDS_A_PROGRAM = 2048
_WORDS = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.uint8}


@dataclass(frozen=True)
class Geometry:
    """One range of heads of a Paged in words of `word_bytes`, with as few dimensions as it takes:
    an inner run that is contiguous in memory, runs in a token, tokens in a block."""

    word_bytes: int
    run: int
    runs: int
    tokens: int
    block_step: int
    token_step: int
    run_step: int
    start: int  # of the first head
    aligned: int  # all of these, and the parts' places, are multiples of so many words

    @staticmethod
    def of(paged: Paged, heads: tuple[int, int], word_bytes: int | None = None) -> Geometry:
        """With `word_bytes` None, the largest word that fits."""
        common = _common_bytes(paged, heads)
        word_bytes = word_bytes or min(8, common)
        scale = paged.base.element_size() / word_bytes
        run, runs, run_step = paged.head_dim, heads[1] - heads[0], paged.head_step
        if run_step == run or runs == 1:
            run, runs, run_step = run * runs, 1, 0
        sizes = [run, paged.block_step, paged.token_step, run_step, heads[0] * paged.head_step]
        run, block_step, token_step, run_step, start = (round(size * scale) for size in sizes)
        return Geometry(
            word_bytes=word_bytes,
            run=run,
            runs=runs,
            tokens=paged.tokens,
            block_step=block_step,
            token_step=token_step,
            run_step=run_step,
            start=start,
            aligned=max(1, common // word_bytes),
        )


def _common_bytes(paged: Paged, heads: tuple[int, int]) -> int:
    """1, 2, 4, 8 or 16: the most of which everything about this range of heads is a multiple."""
    item_bytes = paged.base.element_size()
    steps = [paged.head_dim, paged.block_step, paged.token_step]
    if heads[1] - heads[0] > 1 or heads[0] > 0:
        steps.append(paged.head_step)
    found = 16
    for layer in paged.layers:
        found = math.gcd(found, layer.data_ptr())
    if paged.parts > 1:
        found = math.gcd(found, paged.layers[0].stride(0) * item_bytes)
    for step in steps:
        found = math.gcd(found, step * item_bytes)
    return found


def as_words(tensor: torch.Tensor, word_bytes: int) -> Any:
    """The tensor's first byte as a pointer to words, for a kernel."""
    return triton.reinterpret(tensor, _WORDS[word_bytes])


def shape_of_program(words: int) -> dict[str, int]:
    """How many words a program moves, and with how many warps: small blocks leave few idle."""
    size = min(WORDS_A_PROGRAM, triton.next_power_of_2(words))
    return {"size": size, "num_warps": max(1, min(4, size // 512))}


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return isinstance(to_float8, InterpretedFunction)


@triton.jit
def offsets_in_block(
    token,
    number,
    run: tl.constexpr,
    runs: tl.constexpr,
    token_step,
    run_step,
    aligned: tl.constexpr,
):
    """Where, from the block's start, these words of a token lie: `number` is a word's packed
    number, counted from any token's begin, and goes up by one.

    The compiler is told that each `aligned` words are neighbours in memory, and aligned: a token
    and a run of it are multiples of that. Loads and stores become 16 bytes wide by it.
    """
    within = number % (run * runs)
    found = token.to(tl.int64) * token_step + (within // run) * run_step + within % run
    return tl.max_contiguous(tl.multiple_of(found, aligned), aligned)


@triton.jit
def part_start(offsets, part, word_bytes: tl.constexpr, aligned: tl.constexpr):
    """How many words block 0 of a part lies from the base."""
    return tl.multiple_of(tl.load(offsets + part) // word_bytes, aligned)


@triton.jit
def weighed(words, number, word_bytes: tl.constexpr):
    """The words' share of the block's checksum (paged.checksum_reference), as uint32."""
    if word_bytes == 8:
        low = (words & 0xFFFFFFFF).to(tl.uint32)
        high = ((words >> 32) & 0xFFFFFFFF).to(tl.uint32)
        first = (number * 4 + 1).to(tl.uint32)
        share = low * first + high * (first + 2)
    else:
        a_word: tl.constexpr = 4 // word_bytes
        mask: tl.constexpr = (1 << (8 * word_bytes)) - 1
        place = number.to(tl.uint32)  # Divisions of what may be negative would cost more.
        piece = words.to(tl.uint32) & mask
        piece = piece << ((place % a_word) * (8 * word_bytes))
        share = piece * ((place // a_word) * 2 + 1)
    return share


@triton.jit
def rounded(value, lowest: tl.constexpr):
    """float32 rounded to nearest, ties to even, so that the bits below 2**lowest are zero."""
    bits = value.to(tl.uint32, bitcast=True)
    half: tl.constexpr = (1 << (lowest - 1)) - 1
    kept: tl.constexpr = 0xFFFFFFFF - ((1 << lowest) - 1)
    bits = (bits + half + ((bits >> lowest) & 1)) & kept
    return tl.where(value == value, bits.to(tl.float32, bitcast=True), value)


@triton.jit
def to_float8(value, by_hand: tl.constexpr):
    """float32 of at most 448 in size to the bits of float8_e4m3fn, rounded to the nearest.

    The GPU rounds by itself and knows NaN. Four values become one word here because ptxas 12.8 (of
    Triton 3.6), given pairs that are stored and looked at too, stores some of the round before.
    Triton's interpreter does not carry from the fraction into the exponent, so there (`by_hand`)
    the value is rounded first: to 3 bits of fraction, or to multiples of 2**-9 below 2**-6.
    """
    if by_hand:
        step: tl.constexpr = 24576.0  # 1.5 * 2**23 * 2**-9: adding it leaves multiples of 2**-9
        small = (value + step) - step
        exact = tl.where(tl.abs(value) < 0.015625, small, rounded(value, 20))
        bits = exact.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
        sign = ((value.to(tl.uint32, bitcast=True) >> 24) & 0x80).to(tl.uint8)
        bits = tl.where(value == value, (bits & 0x7F) | sign, 0x7F)
    else:
        bits = tl.inline_asm_elementwise(
            """{
            .reg .b16 low, high;
            cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
            cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
            mov.b32 $0, {low, high};
            }""",
            "=r,r,r,r,r",
            [value],
            dtype=tl.uint8,
            is_pure=True,
            pack=4,
        )
    return bits


@triton.jit
def from_float8(bits, by_hand: tl.constexpr):
    """The bits of float8_e4m3fn as float32."""
    value = bits.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    if by_hand:
        value = tl.where((bits & 0x7F) == 0x7F, float("nan"), value)
    return value


@triton.jit
def to_half(value, dtype: tl.constexpr, by_hand: tl.constexpr):
    """float32 to bfloat16 or float16. Triton's interpreter cuts off where bfloat16 rounds."""
    if by_hand and dtype == tl.bfloat16:
        value = rounded(value, 16)
    return value.to(dtype)
