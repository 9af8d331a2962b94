"""Stage: tests. The demo's model and its paged cache, without any process or network.

One small shape for all; what is compared is compared bit for bit, since that is what the demo says.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from torch_tent.demo import OWN_TEXT
from torch_tent.demo.model import (
    Generated,
    build,
    collect,
    dense_cache,
    empty_pages,
    generate,
    paged_cache,
    prefill,
)
from torch_tent.demo.prompt import BEGIN, Chunk, Shape, chunks, prompt_of

SMALL = Shape(
    layers=3,
    hidden=64,
    inner=96,
    heads=4,
    kv_heads=2,
    deviation=0.45,
    block_tokens=4,
    chunk_blocks=4,
    prompt_tokens_max=300,
    generated=12,
)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return prompt_of(OWN_TEXT, SMALL)


@pytest.fixture(scope="module")
def dense(prompt: list[int]) -> Generated:
    """What transformers itself generates, with its own cache."""
    model, cache = build(SMALL), dense_cache()
    for _ in prefill(model, prompt, SMALL, cache):
        pass
    return collect(generate(model, prompt[-1], SMALL.generated, cache))


def shuffled(blocks: int, seed: int) -> torch.Tensor:
    return torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))


def test_the_prompt_is_the_texts_bytes(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(range(256)) * 2)
    assert prompt_of(text, SMALL) == [BEGIN, *range(256), *range(43)]
    text.write_bytes(b"x" * 255)
    with pytest.raises(ValueError, match="holds 255 bytes: the prompt needs 256"):
        prompt_of(text, SMALL)


def test_our_own_text_fills_the_longest_prompt() -> None:
    assert len(prompt_of(OWN_TEXT, Shape())) == Shape().prompt_tokens_max


def test_chunks_leave_the_last_token_to_the_generator() -> None:
    assert chunks(34, SMALL) == [Chunk(0, 0, 16), Chunk(1, 16, 32), Chunk(2, 32, 33)]
    assert chunks(33, SMALL) == [Chunk(0, 0, 16), Chunk(1, 16, 32)]


def test_the_paged_cache_gathers_what_the_dense_one_holds(prompt: list[int], seed: int) -> None:
    model, blocks = build(SMALL), SMALL.blocks(len(prompt))
    dense, paged = dense_cache(), paged_cache(empty_pages(SMALL, blocks), shuffled(blocks, seed))
    for cache in (dense, paged):
        for _ in prefill(model, prompt, SMALL, cache):
            pass
    for there, here in zip(dense.layers, paged.layers, strict=True):
        assert here.get_seq_length() == len(prompt) - 1
        assert torch.equal(here.gather(), torch.cat([there.keys, there.values]))


def test_a_cache_moved_block_by_block_generates_the_same(
    prompt: list[int], dense: Generated, seed: int
) -> None:
    """What the two processes do, with a copy in the place of the network."""
    model, blocks = build(SMALL), SMALL.blocks(len(prompt))
    blocks_there = SMALL.blocks(len(prompt) + SMALL.generated)
    here, there = empty_pages(SMALL, blocks), empty_pages(SMALL, blocks_there)
    table = shuffled(blocks_there, seed)
    moved = []

    def move(chunk: Chunk, layer: int) -> None:
        first, last = SMALL.blocks(chunk.first), SMALL.blocks(chunk.last)
        there[layer][:, table[first:last]] = here[layer][:, first:last]
        moved.append((chunk.index, layer))

    cache = paged_cache(here, torch.arange(blocks))
    for _ in prefill(model, prompt, SMALL, cache, move):
        pass
    every = [(c.index, n) for c in chunks(len(prompt), SMALL) for n in range(SMALL.layers)]
    assert moved == every
    received = paged_cache(there, table, len(prompt) - 1)
    found = collect(generate(build(SMALL), prompt[-1], SMALL.generated, received))
    assert found.tokens == dense.tokens
    assert torch.equal(found.logits, dense.logits)


def test_a_missing_layer_is_noticed(prompt: list[int], dense: Generated) -> None:
    """The comparison can fail: one layer that did not arrive changes the tokens."""
    model, blocks = build(SMALL), SMALL.blocks(len(prompt) + SMALL.generated)
    pages = empty_pages(SMALL, blocks)
    for _ in prefill(model, prompt, SMALL, paged_cache(pages, torch.arange(blocks))):
        pass
    pages[1].zero_()
    received = paged_cache(pages, torch.arange(blocks), len(prompt) - 1)
    found = collect(generate(model, prompt[-1], SMALL.generated, received))
    assert found.tokens != dense.tokens


def test_the_tokens_are_not_all_the_same(dense: Generated) -> None:
    assert len(set(dense.tokens)) > SMALL.generated // 2


def test_a_cache_without_room_says_so(prompt: list[int]) -> None:
    small = paged_cache(empty_pages(SMALL, 4), torch.arange(4))
    with pytest.raises(ValueError, match="4 blocks of 4 tokens have no room for token 31"):
        for _ in prefill(build(SMALL), prompt, SMALL, small):
            pass


def test_a_hook_that_raises_leaves_no_hook_behind(prompt: list[int]) -> None:
    model, blocks = build(SMALL), SMALL.blocks(len(prompt))

    def fail(chunk: Chunk, layer: int) -> None:
        raise RuntimeError("no rail")

    cache = paged_cache(empty_pages(SMALL, blocks), torch.arange(blocks))
    with pytest.raises(RuntimeError, match="no rail"):
        next(prefill(model, prompt, SMALL, cache, fail))
    assert all(not layer.self_attn._forward_hooks for layer in model.model.layers)


def test_every_process_builds_the_same_model() -> None:
    one, other = build(SMALL).state_dict(), build(SMALL).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    different = build(dataclasses.replace(SMALL, seed=SMALL.seed + 1)).state_dict()
    assert not torch.equal(one["lm_head.weight"], different["lm_head.weight"])
