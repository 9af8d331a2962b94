"""The pack kernel against its torch reference: every layout, odd sizes, float8, checksums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from triton_kernels import Packed, Paged, pack, pack_reference

from .paged_caches import DEVICE, FORMS, Form, same_bits

HALVES = [form for form in FORMS if form.dtype in (torch.bfloat16, torch.float16)]


def assert_same(packed: Packed, wanted: Packed) -> None:
    assert packed.block_tokens == wanted.block_tokens
    assert same_bits(packed.data, wanted.data)
    assert same_bits(packed.scales, wanted.scales)
    assert same_bits(packed.checksums, wanted.checksums)


def some_blocks(form: Form, count: int = 5) -> torch.Tensor:
    return torch.randperm(form.blocks)[:count]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_gathers_what_the_reference_gathers(form: Form) -> None:
    paged = form.paged(form.tensors())
    for heads in (None, (form.heads // 2, form.heads)):
        blocks = some_blocks(form)
        found = pack(paged, blocks, heads=heads, checksum=True)
        assert_same(found, pack_reference(paged, blocks, heads=heads, checksum=True))


def test_the_reference_is_in_the_order_of_tokens() -> None:
    form = Form(order="HND", layers=2)
    tensors = form.tensors()
    data = pack_reference(form.paged(tensors), [7, 2]).data
    assert data.shape == (2 * 2, 2 * form.tokens, form.heads, form.head_dim)
    # Layer 1, values (part 1), the second block of the list (2), its token 3, head 1.
    assert torch.equal(data[3, form.tokens + 3, 1], tensors[1][1, 2, 1, 3])


@pytest.mark.parametrize("form", HALVES, ids=str)
def test_float8_is_that_of_torch(form: Form) -> None:
    paged = form.paged(form.tensors())
    blocks = some_blocks(form)
    found = pack(paged, blocks, float8=True, checksum=True)
    assert found.data.dtype == torch.float8_e4m3fn
    assert_same(found, pack_reference(paged, blocks, float8=True, checksum=True))


def test_float8_of_zeros_infinities_and_nan() -> None:
    form = Form(layers=1, parts=0)
    (layer,) = form.tensors()
    layer[0] = 0
    layer[1, 0, 0, :3] = torch.tensor([float("inf"), float("-inf"), float("nan")]).to(layer)
    found = pack(form.paged([layer]), [0, 1], float8=True)
    wanted = pack_reference(form.paged([layer]), [0, 1], float8=True)
    assert torch.equal(found.data.float().nan_to_num(7e5), wanted.data.float().nan_to_num(7e5))
    assert same_bits(found.scales, wanted.scales)
    assert found.scales is not None
    assert float(found.scales[0, 0]) == 1.0
    begin = found.data[0, form.tokens, 0, :3].float()
    assert begin[:2].tolist() == [448.0, -448.0]
    assert begin[2].isnan()


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, lambda x: torch.tensor(x).int()])
def test_blocks_can_be_any_list_of_integers(kind: Callable[[list[int]], object]) -> None:
    form = Form()
    paged = form.paged(form.tensors())
    assert_same(pack(paged, kind([4, 4, 0])), pack_reference(paged, [4, 4, 0]))


def test_no_blocks_are_no_bytes() -> None:
    paged = Form().paged(Form().tensors())
    for float8 in (False, True):
        found = pack(paged, torch.empty(0, dtype=torch.int64), float8=float8, checksum=True)
        assert found.data.shape == (6, 0, 4, 32)
        assert_same(found, pack_reference(paged, [], float8=float8, checksum=True))


def test_offsets_beyond_32_bits() -> None:
    """Blocks that lie 2.5 GiB apart; the memory between them is never touched."""
    step = (5 << 29) + 64
    memory = torch.empty(2 * step + 256, dtype=torch.uint8, device=DEVICE)
    layer = memory.as_strided((3, 2, 4, 32), (step, 128, 32, 1))
    layer.copy_(torch.randint(0, 256, layer.shape, dtype=torch.uint8))
    paged = Paged.of([layer])
    assert_same(pack(paged, [2, 0, 1]), pack_reference(paged, [2, 0, 1]))


def test_one_changed_and_two_swapped_words_change_the_checksum() -> None:
    form = Form(layers=1, parts=0, dtype=torch.float32)
    (layer,) = form.tensors()
    paged = form.paged([layer])

    def sums() -> list[int]:
        found = pack(paged, [0, 1], checksum=True).checksums
        assert found is not None
        return found[0].tolist()

    first = sums()
    layer.view(torch.int32)[0, 0, 0, 5] ^= 1 << 31
    changed = sums()
    assert changed[0] != first[0]
    assert changed[1] == first[1]
    layer.view(torch.int32)[0, 0, 0, 5] ^= 1 << 31
    layer[0, 0, 0, [0, 1]] = layer[0, 0, 0, [1, 0]]
    assert sums()[0] != first[0]


def test_what_does_not_fit_is_named() -> None:
    form = Form()
    paged = form.paged(form.tensors())
    with pytest.raises(IndexError, match="block 11: the cache has the blocks 0 to 10"):
        pack(paged, [0, 11])
    with pytest.raises(IndexError, match="block -1"):
        pack(paged, [-1])
    with pytest.raises(ValueError, match="a list of block numbers"):
        pack(paged, [0.5])
    with pytest.raises(IndexError, match=r"heads is \(2, 5\)"):
        pack(paged, [0], heads=(2, 5))
    whole = Form(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"the cache is torch\.float32"):
        pack(whole.paged(whole.tensors()), [0], float8=True)


def test_layers_that_do_not_lie_alike_are_refused() -> None:
    one, other = Form().tensors()[0], Form(blocks=12).tensors()[0]
    with pytest.raises(ValueError, match="layer 1 is"):
        Paged.of([one, other], 1)
    with pytest.raises(ValueError, match="the last must be 1"):
        Paged.of([one.transpose(3, 4)], 1)
    with pytest.raises(ValueError, match="layers is empty"):
        Paged.of([])
    with pytest.raises(ValueError, match="has shape"):
        Paged.of([one[0, 0, 0]])
    with pytest.raises(ValueError, match="order is 'DHN'"):
        Paged.of([one], 1, "DHN")  # type: ignore[arg-type]


def test_a_cache_without_heads() -> None:
    layers = [torch.randn(6, 16, 72).to(torch.bfloat16).to(DEVICE) for _ in range(2)]
    paged = Paged.of(layers)
    assert (paged.heads, paged.head_dim) == (1, 72)
    found = pack(paged, [5, 1], checksum=True)
    assert_same(found, pack_reference(paged, [5, 1], checksum=True))
    assert torch.equal(found.data[1, 16:, 0], layers[1][1])
