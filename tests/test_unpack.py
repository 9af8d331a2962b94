"""The unpack kernel against its torch reference, and against pack at the other end."""

from __future__ import annotations

import pytest
import torch

from triton_kernels import Packed, Paged, pack, unpack, unpack_reference

from .paged_caches import DEVICE, FORMS, Form, same_bits


def assert_same_result(
    packed: Packed, form: Form, blocks: torch.Tensor, heads: tuple[int, int] | None = None
) -> list[torch.Tensor]:
    """Unpacks with the kernel and the reference into poisoned caches and compares all of them."""
    mine, theirs = form.tensors("poison"), form.tensors("poison")
    sums = unpack(packed, form.paged(mine), blocks, heads=heads, checksum=True)
    wanted = unpack_reference(packed, form.paged(theirs), blocks, heads=heads, checksum=True)
    assert all(map(same_bits, mine, theirs))
    assert same_bits(sums, wanted)
    assert same_bits(sums, packed.checksums)
    return mine


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_undoes_pack(form: Form) -> None:
    source = form.tensors()
    chosen, target = torch.randperm(form.blocks)[:4], torch.randperm(form.blocks)[:4]
    packed = pack(form.paged(source), chosen, checksum=True)
    found = assert_same_result(packed, form, target)
    for ours, theirs in zip(form.paged(found).views(), form.paged(source).views(), strict=True):
        assert same_bits(ours[target], theirs[chosen])


@pytest.mark.parametrize("tokens", [4, 8, 16, 32])
@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_the_other_end_has_blocks_of_another_size_and_order(tokens: int, order: str) -> None:
    here = Form(tokens=8, blocks=13)
    there = Form(tokens=tokens, order=order, blocks=64 // tokens + 3, packing="one")
    packed = pack(here.paged(here.tensors()), torch.randperm(13)[:8], checksum=True)
    target = torch.randperm(there.blocks)[: 64 // tokens]
    found = assert_same_result(packed, there, target)
    lines = [view[target].reshape(64, 4, 32) for view in there.paged(found).views()]
    assert same_bits(torch.stack(lines), packed.data)


def test_two_halves_of_the_heads_make_the_whole() -> None:
    """Prefill on two ranks with four heads each, decode on one with eight."""
    there = Form(heads=8)
    whole = there.tensors("poison")
    sources = []
    for number in range(2):
        here = Form(heads=4)
        sources.append(here.tensors())
        packed = pack(here.paged(sources[-1]), [3, 5, 6])
        heads = (4 * number, 4 * number + 4)
        assert unpack(packed, there.paged(whole), [0, 2, 10], heads=heads) is None
    for layer, (low, high) in enumerate(zip(*sources, strict=True)):
        both = torch.cat([low, high], dim=3)
        assert same_bits(whole[layer][:, [0, 2, 10]], both[:, [3, 5, 6]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [4, 16])
def test_float8_comes_back_within_its_rounding(dtype: torch.dtype, tokens: int) -> None:
    here, there = Form(dtype=dtype), Form(dtype=dtype, tokens=tokens, blocks=30)
    source = here.tensors()
    packed = pack(here.paged(source), [1, 7], float8=True, checksum=True)
    target = torch.randperm(30)[: 2 * 16 // tokens]
    found = assert_same_result(packed, there, target)
    assert packed.scales is not None
    for plane, view in enumerate(there.paged(found).views()):
        exact = here.paged(source).views()[plane][[1, 7]].flatten(0, 1).float()
        step = packed.scales[plane].repeat_interleave(16)[:, None, None]
        # Half of a step: 2**-4 of a normal number, 2**-10 scales of a subnormal one; and the dtype.
        allowed = torch.maximum(exact.abs() * (2**-4 + 2**-8), step * 2**-9)
        assert bool(((view[target].flatten(0, 1).float() - exact).abs() <= allowed).all())


def test_a_damaged_byte_shows_in_its_block_alone() -> None:
    form = Form(layers=1, parts=0)
    packed = pack(form.paged(form.tensors()), [1, 2, 3], checksum=True)
    packed.data.view(torch.uint8)[0, form.tokens + 2, 1, 5] ^= 4
    sums = unpack(packed, form.paged(form.tensors("poison")), [0, 1, 2], checksum=True)
    assert sums is not None
    assert packed.checksums is not None
    assert (sums != packed.checksums).tolist() == [[False, True, False]]


def test_no_blocks_touch_nothing() -> None:
    form = Form()
    nothing = torch.empty(0, dtype=torch.int64)
    packed = pack(form.paged(form.tensors()), nothing, checksum=True)
    found = assert_same_result(packed, form, nothing)
    assert all(map(same_bits, found, form.tensors("poison")))


def test_offsets_beyond_32_bits() -> None:
    step = (5 << 29) + 64
    memory = torch.empty(2 * step + 256, dtype=torch.uint8, device=DEVICE)
    layer = memory.as_strided((3, 2, 4, 32), (step, 128, 32, 1))
    data = torch.randint(0, 256, (1, 6, 4, 32), dtype=torch.uint8).to(DEVICE)
    unpack(Packed(data, 3), Paged.of([layer]), [2, 0, 1])
    assert same_bits(layer[[2, 0, 1]].reshape(data.shape), data)


def test_what_does_not_fit_is_named() -> None:
    form = Form()
    paged = form.paged(form.tensors())
    packed = pack(paged, [0, 1])
    with pytest.raises(
        ValueError, match=r"is \[6, 32, 4, 32\], these blocks take \[6, 48, 4, 32\]"
    ):
        unpack(packed, paged, [0, 1, 2])
    with pytest.raises(ValueError, match="names a block twice"):
        unpack(packed, paged, [1, 1])
    with pytest.raises(ValueError, match="these blocks take"):
        unpack(packed, paged, [0, 1], heads=(0, 2))
    other = Form(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"the cache torch\.float16"):
        unpack(packed, other.paged(other.tensors()), [0, 1])
    wide = Form(dtype=torch.float32)
    with pytest.raises(ValueError, match="unpacked to bfloat16 or float16"):
        unpack(pack(paged, [0], float8=True), wide.paged(wide.tensors()), [0])
