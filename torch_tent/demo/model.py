"""Stage: demo. A real decoder-only transformer on the bytes of a text, and its paged KV cache.

Called by the prefill and the decode process, by the computation that checks them and by tests, each
on its own thread. Knows nothing of processes or networks. What always holds: with the same shape,
prompt, chunks and number of threads every process computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

BEGIN = 256  # Tokens 0 to 255 are bytes; this one begins every prompt.
VOCABULARY = 257
PROMPT_BYTES_MIN = 256


@dataclass(frozen=True)
class Shape:
    """The model and how its cache is cut; sent to every process, so plain numbers only.

    With a standard deviation of 0.16 (0.02 is usual before training) attention is sharp, so that
    the logits depend on single positions and the generated tokens do not repeat themselves.
    """

    layers: int = 8
    hidden: int = 512
    inner: int = 1408
    heads: int = 8
    kv_heads: int = 4
    seed: int = 6
    deviation: float = 0.16
    block_tokens: int = 16
    chunk_blocks: int = 16
    prompt_tokens_max: int = 4096
    generated: int = 48

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def chunk_tokens(self) -> int:
        return self.block_tokens * self.chunk_blocks

    @property
    def token_bytes(self) -> int:
        """Bytes of cache for one token: keys and values of every layer, float32."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 4

    def blocks(self, tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-tokens // self.block_tokens)

    def empty_layer(self, blocks: int) -> torch.Tensor:
        """Zeroed pages of one layer, float32 [2, blocks, kv_heads, block_tokens, head_dim]."""
        return torch.zeros(2, blocks, self.kv_heads, self.block_tokens, self.head_dim)


@dataclass(frozen=True)
class Generated:
    """What a computation generated: `tokens`, and `logits` [tokens, vocabulary] it chose from."""

    tokens: list[int]
    logits: torch.Tensor


def prompt_of(text: Path, shape: Shape) -> list[int]:
    """The text's first bytes as tokens. Raises OSError, and ValueError for a text too short."""
    with text.open("rb") as source:
        found = source.read(shape.prompt_tokens_max - 1)
    if len(found) < PROMPT_BYTES_MIN:
        raise ValueError(
            f"{text} holds {len(found)} bytes: the prompt needs {PROMPT_BYTES_MIN} or more, "
            "so that there is a cache worth moving; name a longer text."
        )
    return [BEGIN, *found]


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


class PagedLayer(DynamicLayer):
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


@dataclass(frozen=True)
class Chunk:
    """Tokens `first` to `last` (exclusive) of the prompt, computed together."""

    index: int
    first: int
    last: int


def chunks(tokens: int, shape: Shape) -> list[Chunk]:
    """The prompt but its last token, cut into chunks of whole blocks, the last one perhaps less.

    The last token of the prompt is left to whoever generates: its logits are the first to need the
    whole cache.
    """
    step = shape.chunk_tokens
    firsts = range(0, tokens - 1, step)
    return [Chunk(i, first, min(first + step, tokens - 1)) for i, first in enumerate(firsts)]


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


def collect(steps: Iterator[tuple[int, torch.Tensor]]) -> Generated:
    """All steps of `generate`."""
    tokens, logits = zip(*steps, strict=True)
    return Generated(list(tokens), torch.stack(logits))


def dense_cache() -> Cache:
    """The cache that transformers itself would use: what the paged one is checked against."""
    return DynamicCache()
