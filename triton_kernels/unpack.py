"""Stage: kernels. One contiguous staging area into scattered blocks of many layers.

Called by whoever moves GPU caches, on the current stream; nothing here waits for the GPU. What
always holds: the result is that of `unpack_reference`, bit for bit; nothing but the chosen heads of
the chosen blocks is written.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .paged import FLOAT8, Packed, Paged, checksum_reference
from .places import (
    Geometry,
    as_words,
    from_float8,
    interpreted,
    offsets_in_block,
    part_start,
    shape_of_program,
    to_half,
    weighed,
)


def unpack(
    packed: Packed,
    paged: Paged,
    blocks: Any,
    *,
    heads: tuple[int, int] | None = None,
    checksum: bool = False,
) -> torch.Tensor | None:
    """Scatters packed tokens into these blocks of all layers, in the order of the list.

    The blocks may be of another size than where `packed` was made, and lie in another order: the
    tokens fill them one after the other. `blocks`: as in `pack`, none twice; they hold just as many
    tokens as `packed`. `heads`: (first, end) of the cache that is filled, as many as were packed.
    float8 data becomes the cache's dtype, bfloat16 or float16.

    Returns, where `checksum` asks for it, the checksums of the bytes that were unpacked, int32
    [layers * parts, blocks where they were packed], to be compared with `packed.checksums`; else
    None. Raises ValueError and IndexError for what does not fit.
    """
    chosen, first, end = _checked(packed, paged, blocks, heads)
    data, step = packed.data.contiguous(), packed.block_tokens
    table = (data.shape[0], data.shape[1] // step)
    sums = torch.zeros(table, dtype=torch.int32, device=paged.device) if checksum else None
    if data.numel() == 0:
        return sums
    float8 = data.dtype == FLOAT8 and paged.dtype != FLOAT8
    form = Geometry.of(paged, (first, end), paged.base.element_size() if float8 else None)
    of_token = form.run * form.runs
    shape = shape_of_program(of_token * step)
    programs = (table[1], triton.cdiv(of_token * step, shape["size"]), table[0])
    _scatter_blocks[programs](
        paged.base if float8 else as_words(paged.base, form.word_bytes),
        paged.offsets,
        chosen,
        as_words(data, 1 if float8 else form.word_bytes),
        packed.scales if float8 else data,
        data if sums is None else sums,
        of_token * step,
        step,
        form.block_step,
        form.token_step,
        form.run_step,
        form.start,
        run=form.run,
        runs=form.runs,
        tokens=form.tokens,
        word_bytes=form.word_bytes,
        aligned=form.aligned,
        float8=float8,
        by_hand=interpreted(),
        with_sums=sums is not None,
        alike=step == paged.tokens,
        **shape,
    )
    return sums


def unpack_reference(
    packed: Packed,
    paged: Paged,
    blocks: Any,
    *,
    heads: tuple[int, int] | None = None,
    checksum: bool = False,
) -> torch.Tensor | None:
    """What `unpack` computes, in torch."""
    chosen, first, end = _checked(packed, paged, blocks, heads)
    data = packed.data
    sums = checksum_reference(data, packed.block_tokens) if checksum else None
    if packed.scales is not None:
        scales = packed.scales.repeat_interleave(packed.block_tokens, dim=1)
        data = (data.float() * scales[:, :, None, None]).to(paged.dtype)
    for view, rows in zip(paged.views(), data, strict=True):
        view[chosen, :, first:end] = rows.unflatten(0, (chosen.numel(), paged.tokens))
    return sums


def _checked(
    packed: Packed, paged: Paged, blocks: Any, heads: tuple[int, int] | None
) -> tuple[torch.Tensor, int, int]:
    chosen = paged.block_list(blocks, distinct=True)
    first, end = paged.head_range(heads)
    data = packed.data
    wanted = (paged.offsets.numel(), chosen.numel() * paged.tokens, end - first, paged.head_dim)
    if tuple(data.shape) != wanted:
        raise ValueError(
            f"the packed data is {list(data.shape)}, these blocks take {list(wanted)}: layers and "
            "parts, tokens, heads, head_dim"
        )
    if data.device != paged.device:
        raise ValueError(f"the packed data is on {data.device}, the cache on {paged.device}")
    halves = (torch.bfloat16, torch.float16)
    if packed.scales is not None and (data.dtype != FLOAT8 or paged.dtype not in halves):
        raise ValueError(
            f"scaled {data.dtype} is unpacked to bfloat16 or float16: the cache is {paged.dtype}"
        )
    if packed.scales is None and data.dtype != paged.dtype:
        raise ValueError(f"the packed data is {data.dtype}, the cache {paged.dtype}")
    return chosen, first, end


@triton.jit
def _scatter_blocks(
    base,
    offsets,
    blocks,
    data,
    scales,
    sums,
    words,
    packed_tokens,
    block_step,
    token_step,
    run_step,
    start,
    run: tl.constexpr,
    runs: tl.constexpr,
    tokens: tl.constexpr,
    word_bytes: tl.constexpr,
    aligned: tl.constexpr,
    float8: tl.constexpr,
    by_hand: tl.constexpr,
    with_sums: tl.constexpr,
    alike: tl.constexpr,
    size: tl.constexpr,
):
    """One program moves `size` words of one packed block, to wherever its tokens go: into one
    block, where they are `alike` in size."""
    place, part = tl.program_id(0), tl.program_id(2)
    row = part.to(tl.int64) * tl.num_programs(0) + place
    number = tl.program_id(1) * size + tl.arange(0, size)
    inside = number < words
    found = tl.load(data + row * words + number, mask=inside)
    of_token: tl.constexpr = run * runs
    target = base + part_start(offsets, part, word_bytes, aligned) + start
    token = number // of_token
    if alike:
        target += tl.multiple_of(tl.load(blocks + place) * block_step, aligned)
        where = offsets_in_block(token, number, run, runs, token_step, run_step, aligned)
    else:
        token = place.to(tl.int64) * packed_tokens + token
        block = tl.load(blocks + token // tokens, mask=inside, other=0)
        where = block * block_step + offsets_in_block(
            token % tokens, number, run, runs, token_step, run_step, aligned
        )
        # Neighbours up to the alignment are of one token, so of one block.
        where = tl.max_contiguous(tl.multiple_of(where, aligned), aligned)
    target += where
    if with_sums:
        share = tl.where(inside, weighed(found, number, 1 if float8 else word_bytes), 0)
        tl.atomic_add(sums + row, tl.sum(share).to(tl.int32, bitcast=True))
    if float8:
        value = from_float8(found, by_hand) * tl.load(scales + row)
        tl.store(target, to_half(value, base.dtype.element_ty, by_hand), mask=inside)
    else:
        tl.store(target, found, mask=inside)
