"""Stage: demo. The prompt, the numbers that describe the model, and how both are cut.

Used by every process of the demo; values, any thread. Imports neither torch nor transformers, so
that the parent process starts at once. What always holds: chunks are made of whole blocks, but for
the end of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
