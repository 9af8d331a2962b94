"""Stage: demo. A real decoder-only transformer and its paged KV cache.

Called by the prefill process, the decode process and the one that checks them, each on its own
main thread. Knows nothing of processes or networks. What always holds: with the same shape,
prompt, chunks and number of threads every process computes the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from torch_tent.demo.prompt import BEGIN, VOCABULARY, Chunk, Shape, chunks


@dataclass(frozen=True)
class Generated:
    """What a computation generated: `tokens`, and `logits` [tokens, vocabulary] it chose from."""

    tokens: list[int]
    logits: torch.Tensor


def build(shape: Shape) -> LlamaForCausalLM:
    """The model with its seeded weights."""
    torch.manual_seed(shape.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2 * shape.prompt_tokens_max,
        initializer_range=shape.deviation,
        bos_token_id=BEGIN,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


class PagedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of the cache, in pages: token i lies in block `table[i // block_tokens]`.

    `pages` is [2, blocks, kv_heads, block_tokens, head_dim]; several caches may share it.
    """

    def __init__(self, pages: torch.Tensor, table: torch.Tensor, tokens: int = 0) -> None:
        super().__init__()
        self.pages = pages
        self.table = table
        self.tokens = tokens
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the new tokens; returns all, both ways [1, kv_heads, tokens, head_dim]."""
        new = torch.stack([key_states[0], value_states[0]]).transpose(1, 2)
        at = torch.arange(self.tokens, self.tokens + new.shape[1])
        width = self.pages.shape[3]
        if at[-1] // width >= len(self.table):
            raise ValueError(
                f"{len(self.table)} blocks of {width} tokens have no room for token {int(at[-1])}"
            )
        self.pages[:, self.table[at // width], :, at % width] = new.permute(1, 0, 2, 3)
        self.tokens += new.shape[1]
        both = self.gather()
        return both[0, None], both[1, None]

    def gather(self) -> torch.Tensor:
        """The tokens so far in their order, contiguous, [2, kv_heads, tokens, head_dim]."""
        _, _, heads, width, head_dim = self.pages.shape
        blocks = -(-self.tokens // width)
        dense = torch.empty(2, heads, blocks, width, head_dim, dtype=self.pages.dtype)
        dense.copy_(self.pages[:, self.table[:blocks]].transpose(1, 2))
        return dense.view(2, heads, blocks * width, head_dim)[:, :, : self.tokens].contiguous()


def paged_cache(pages: Sequence[torch.Tensor], table: torch.Tensor, tokens: int = 0) -> Cache:
    """A cache for transformers over the pages of every layer; the first `tokens` are there."""
    return Cache(layers=[PagedLayer(layer, table, tokens) for layer in pages])


def prefill(
    model: LlamaForCausalLM,
    prompt: Sequence[int],
    shape: Shape,
    cache: Cache,
    computed: Callable[[Chunk, int], None] | None = None,
) -> Iterator[Chunk]:
    """Fills the cache chunk by chunk, yielding each when it is done.

    `computed(chunk, layer)` is called as soon as a layer's keys and values are in the cache, while
    the rest of the chunk is still to be computed.
    """
    now = Chunk(0, 0, 0)
    hooks = []
    if computed is not None:
        for index, layer in enumerate(model.model.layers):
            hooks.append(
                layer.self_attn.register_forward_hook(lambda *_, at=index: computed(now, at))
            )
    try:
        for now in chunks(len(prompt), shape):
            tokens = torch.tensor([prompt[now.first : now.last]])
            with torch.no_grad():
                model.model(input_ids=tokens, past_key_values=cache, use_cache=True)
            yield now
    finally:
        for hook in hooks:
            hook.remove()


def generate(
    model: LlamaForCausalLM, last: int, count: int, cache: Cache
) -> Iterator[tuple[int, torch.Tensor]]:
    """Greedy: from the prompt's last token on, yields each token with its logits [vocabulary]."""
    token = last
    for _ in range(count):
        with torch.no_grad():
            found = model(
                input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True
            ).logits[0, -1]
        token = int(found.argmax())
        yield token, found


def collect(steps: Iterable[tuple[int, torch.Tensor]]) -> Generated:
    """All steps of `generate`."""
    tokens, logits = zip(*steps, strict=True)
    return Generated(list(tokens), torch.stack(logits))


def digest_of(cache: Cache) -> str:
    """SHA-256 of all keys and values of a paged cache, in the order of layers and tokens."""
    found = hashlib.sha256()
    for layer in cache.layers:
        found.update(layer.gather().numpy())
    return found.hexdigest()


def dense_cache() -> Cache:
    """The cache that transformers itself would use: what the paged one is checked against."""
    return DynamicCache()


def empty_pages(shape: Shape, blocks: int) -> list[torch.Tensor]:
    """Zeroed pages: per layer float32 [2, blocks, kv_heads, block_tokens, head_dim]."""
    size = (2, blocks, shape.kv_heads, shape.block_tokens, shape.head_dim)
    return [torch.zeros(size) for _ in range(shape.layers)]
