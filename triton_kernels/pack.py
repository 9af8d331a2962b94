"""Stage: kernels. Scattered blocks of many layers into one contiguous staging area.

Called by whoever moves GPU caches, on the current stream; nothing here waits for the GPU. What
always holds: the result is that of `pack_reference`, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .paged import FLOAT8, FLOAT8_MAX, Packed, Paged, checksum_reference
from .places import (
    Geometry,
    as_words,
    interpreted,
    offsets_in_block,
    part_start,
    shape_of_program,
    to_float8,
    weighed,
)

ELEMENTS_A_PASS = 4096


def pack(
    paged: Paged,
    blocks: Any,
    *,
    heads: tuple[int, int] | None = None,
    float8: bool = False,
    checksum: bool = False,
) -> Packed:
    """Gathers these blocks of all layers, in the order of the list.

    `blocks`: block numbers, a tensor or sequence; one on the GPU is not checked. `heads`: (first,
    end), None for all. `float8`: bfloat16 and float16 become float8_e4m3fn with one float32 scale
    for each block of each part: the block's largest finite size / 448; infinities become that
    largest size, NaN stays. `checksum`: one for each packed
    block (paged.checksum_reference), computed on the way.

    Returns Packed: data [layers * parts, len(blocks) * tokens, heads, head_dim] of the cache's
    dtype or float8_e4m3fn. Raises ValueError and IndexError for blocks or heads that are not there,
    and ValueError for float8 of another dtype.
    """
    chosen, first, end = _checked(paged, blocks, heads, float8)
    planes, count = paged.offsets.numel(), chosen.numel()
    shape = (planes, count * paged.tokens, end - first, paged.head_dim)
    data = torch.empty(shape, dtype=FLOAT8 if float8 else paged.dtype, device=paged.device)
    table = (planes, count)
    sums = torch.zeros(table, dtype=torch.int32, device=paged.device) if checksum else None
    scales = torch.empty(table, dtype=torch.float32, device=paged.device) if float8 else None
    if data.numel() > 0 and float8:
        _launch_float8(paged, chosen, (first, end), data, scales, sums)
    elif data.numel() > 0:
        _launch_copy(paged, chosen, (first, end), data, sums)
    return Packed(data, paged.tokens, scales, sums)


def pack_reference(
    paged: Paged,
    blocks: Any,
    *,
    heads: tuple[int, int] | None = None,
    float8: bool = False,
    checksum: bool = False,
) -> Packed:
    """What `pack` computes, in torch."""
    chosen, first, end = _checked(paged, blocks, heads, float8)
    found = torch.stack([view[chosen][:, :, first:end] for view in paged.views()])
    scales = None
    if float8:
        values = found.float()
        sizes = torch.where(values.isfinite(), values.abs(), 0.0).flatten(2)
        scales = torch.nn.functional.pad(sizes, (0, 1)).amax(2) * (1.0 / FLOAT8_MAX)
        scales = torch.where(scales > 0, scales, torch.ones_like(scales))
        values = values / scales[:, :, None, None, None]
        found = values.clamp(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8)
    data = found.flatten(1, 2).contiguous()
    sums = checksum_reference(data, paged.tokens) if checksum else None
    return Packed(data, paged.tokens, scales, sums)


def _checked(
    paged: Paged, blocks: Any, heads: tuple[int, int] | None, float8: bool
) -> tuple[torch.Tensor, int, int]:
    if float8 and paged.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"float8 is made of bfloat16 or float16: the cache is {paged.dtype}")
    return paged.block_list(blocks), *paged.head_range(heads)


def _launch_copy(
    paged: Paged,
    chosen: torch.Tensor,
    heads: tuple[int, int],
    data: torch.Tensor,
    sums: torch.Tensor | None,
) -> None:
    form = Geometry.of(paged, heads)
    words = form.run * form.runs * form.tokens
    shape = shape_of_program(words)
    programs = (chosen.numel(), triton.cdiv(words, shape["size"]), paged.offsets.numel())
    _copy_blocks[programs](
        as_words(paged.base, form.word_bytes),
        paged.offsets,
        chosen,
        as_words(data, form.word_bytes),
        data if sums is None else sums,
        words,
        form.block_step,
        form.token_step,
        form.run_step,
        form.start,
        run=form.run,
        runs=form.runs,
        word_bytes=form.word_bytes,
        aligned=form.aligned,
        with_sums=sums is not None,
        **shape,
    )


def _launch_float8(
    paged: Paged,
    chosen: torch.Tensor,
    heads: tuple[int, int],
    data: torch.Tensor,
    scales: torch.Tensor | None,
    sums: torch.Tensor | None,
) -> None:
    form = Geometry.of(paged, heads, paged.base.element_size())
    _float8_blocks[(chosen.numel(), paged.offsets.numel())](
        paged.base,
        paged.offsets,
        chosen,
        as_words(data, 1),
        scales,
        data if sums is None else sums,
        form.run * form.runs * form.tokens,
        form.block_step,
        form.token_step,
        form.run_step,
        form.start,
        run=form.run,
        runs=form.runs,
        aligned=form.aligned,
        with_sums=sums is not None,
        by_hand=interpreted(),
        size=ELEMENTS_A_PASS,
    )


@triton.jit
def _copy_blocks(
    base,
    offsets,
    blocks,
    data,
    sums,
    words,
    block_step,
    token_step,
    run_step,
    start,
    run: tl.constexpr,
    runs: tl.constexpr,
    word_bytes: tl.constexpr,
    aligned: tl.constexpr,
    with_sums: tl.constexpr,
    size: tl.constexpr,
):
    """One program moves `size` words of one block of one part."""
    place, part = tl.program_id(0), tl.program_id(2)
    row = part.to(tl.int64) * tl.num_programs(0) + place
    block = tl.load(blocks + place)
    number = tl.program_id(1) * size + tl.arange(0, size)
    inside = number < words
    source = base + part_start(offsets, part, word_bytes, aligned)
    source += tl.multiple_of(block * block_step, aligned) + start
    token = number // (run * runs)
    where = offsets_in_block(token, number, run, runs, token_step, run_step, aligned)
    found = tl.load(source + where, mask=inside)
    tl.store(data + row * words + number, found, mask=inside)
    if with_sums:
        share = tl.where(inside, weighed(found, number, word_bytes), 0)
        tl.atomic_add(sums + row, tl.sum(share).to(tl.int32, bitcast=True))


@triton.jit
def _float8_blocks(
    base,
    offsets,
    blocks,
    data,
    scales,
    sums,
    elements,
    block_step,
    token_step,
    run_step,
    start,
    run: tl.constexpr,
    runs: tl.constexpr,
    aligned: tl.constexpr,
    with_sums: tl.constexpr,
    by_hand: tl.constexpr,
    size: tl.constexpr,
):
    """One program makes float8 of one block of one part: it looks for the largest, then converts;
    the second reading comes from the cache."""
    place, part = tl.program_id(0), tl.program_id(1)
    row = part.to(tl.int64) * tl.num_programs(0) + place
    item_bytes: tl.constexpr = 2
    source = base + part_start(offsets, part, item_bytes, aligned)
    source += tl.multiple_of(tl.load(blocks + place) * block_step, aligned) + start
    largest = tl.zeros((size,), tl.float32)
    for begin in range(0, elements, size):
        number = begin + tl.arange(0, size)
        token = number // (run * runs)
        where = source + offsets_in_block(token, number, run, runs, token_step, run_step, aligned)
        value = tl.abs(tl.load(where, mask=number < elements, other=0.0).to(tl.float32))
        largest = tl.maximum(largest, tl.where(value < float("inf"), value, 0.0))
    scale = tl.max(largest) * (1.0 / 448.0)
    scale = tl.where(scale > 0, scale, 1.0)
    tl.store(scales + row, scale)
    total = tl.zeros((size,), tl.uint32)
    for begin in range(0, elements, size):
        number = begin + tl.arange(0, size)
        inside = number < elements
        token = number // (run * runs)
        where = source + offsets_in_block(token, number, run, runs, token_step, run_step, aligned)
        value = tl.div_rn(tl.load(where, mask=inside, other=0.0).to(tl.float32), scale)
        value = tl.where(value > 448.0, 448.0, tl.where(value < -448.0, -448.0, value))
        bits = to_float8(value, by_hand)
        tl.store(data + row * elements + number, bits, mask=inside)
        if with_sums:
            total += tl.where(inside, weighed(bits, number, 1), 0)
    if with_sums:
        tl.store(sums + row, tl.sum(total).to(tl.int32, bitcast=True))
