"""Stage: kernels. Paged layers and packed bytes as the kernels see them: values, checked here.

Made by callers of pack and unpack, on any thread. What always holds: all layers of a Paged lie
alike, so that one table of places and three steps describe every element; packed data is in the
order of the tokens, [layers, parts, tokens, heads, head_dim], whatever the order in a block is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Order = Literal["NHD", "HND"]

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0  # the largest finite float8_e4m3fn (OCP 8-bit floating point, revision 1.0)


@dataclass(frozen=True)
class Paged:
    """The layers of a paged cache on one device. Make it with `Paged.of`.

    Steps are in elements. `offsets`: int64 [layers * parts], bytes from `base` to each part's
    block 0; a part is one of a layer's leading positions (keys, values).
    """

    layers: tuple[torch.Tensor, ...]  # kept alive
    offsets: torch.Tensor
    parts: int
    blocks: int
    tokens: int  # in a block
    heads: int
    head_dim: int
    block_step: int
    token_step: int
    head_step: int

    @staticmethod
    def of(layers: Sequence[torch.Tensor], block_dim: int = 0, order: Order = "NHD") -> Paged:
        """`layers`: one tensor per layer, all of one dtype, device, shape and strides.

        Each is [blocks, tokens, heads, head_dim] ("NHD") or [blocks, heads, tokens, head_dim]
        ("HND"); a cache without heads is [blocks, tokens, head_dim]. With `block_dim=1` a leading
        dimension counts parts, as in [2, blocks, ...]. Views of one tensor are fine:
        `Paged.of(cache.unbind(0))`. Raises ValueError, naming the layer, for anything else.
        """
        if not layers:
            raise ValueError("layers is empty: a cache has at least one layer")
        if block_dim not in (0, 1):
            raise ValueError(f"block_dim is {block_dim}: it is 0, or 1 after a dimension of parts")
        if order not in ("NHD", "HND"):
            raise ValueError(f"order is {order!r}: it is 'NHD' or 'HND'")
        first = layers[0]
        for number, layer in enumerate(layers):
            if _kind(layer) != _kind(first):
                raise ValueError(f"layer {number} is {_kind(layer)}, layer 0 is {_kind(first)}")
        return Paged._alike(tuple(layers), block_dim, order)

    @staticmethod
    def _alike(layers: tuple[torch.Tensor, ...], block_dim: int, order: Order) -> Paged:
        first = layers[0] if block_dim == 1 else layers[0].unsqueeze(0)
        if first.dim() == 4:  # No heads: one.
            first = first.unsqueeze(2 if order == "HND" else 3)
        if first.dim() != 5:
            raise ValueError(
                f"layer 0 has shape {tuple(layers[0].shape)}: with block_dim={block_dim} it is "
                f"{'[parts, ' if block_dim else '['}blocks, tokens, heads, head_dim]"
            )
        if order == "HND":
            first = first.transpose(2, 3)
        if 0 in first.shape:
            raise ValueError(f"layer 0 has shape {tuple(layers[0].shape)}: it has no elements")
        if first.stride(4) != 1 and first.shape[4] != 1:
            raise ValueError(f"layer 0 has strides {layers[0].stride()}: the last must be 1")
        part_bytes = first.stride(0) * first.element_size()
        base = layers[0].data_ptr()
        places = [
            layer.data_ptr() - base + part * part_bytes
            for layer in layers
            for part in range(first.shape[0])
        ]
        parts, blocks, tokens, heads, head_dim = first.shape
        return Paged(
            layers=layers,
            offsets=torch.tensor(places, dtype=torch.int64, device=first.device),
            parts=parts,
            blocks=blocks,
            tokens=tokens,
            heads=heads,
            head_dim=head_dim,
            block_step=first.stride(1),
            token_step=first.stride(2),
            head_step=first.stride(3),
        )

    @property
    def base(self) -> torch.Tensor:
        """The tensor from which `offsets` count."""
        return self.layers[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    def head_range(self, heads: tuple[int, int] | None) -> tuple[int, int]:
        """The range of heads, checked: None is all. Raises IndexError."""
        if heads is None:
            return 0, self.heads
        first, end = heads
        if not 0 <= first < end <= self.heads:
            raise IndexError(f"heads is {heads}: the cache has the heads 0 to {self.heads}")
        return first, end

    def block_list(self, blocks: Any, distinct: bool = False) -> torch.Tensor:
        """Block numbers as int64 on this device. Raises IndexError for one that is not there and,
        where they must be `distinct`, ValueError for one that comes twice. A list on the GPU is
        not looked at, because that would wait for the GPU."""
        found = torch.as_tensor(blocks)
        if found.numel() == 0 and found.dim() == 1:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        if found.dim() != 1 or found.is_floating_point() or found.is_complex():
            raise ValueError(
                f"blocks is {found.dtype} {list(found.shape)}: it is a list of block numbers"
            )
        if found.device.type == "cpu":
            low, high = int(found.min()), int(found.max())
            if low < 0 or high >= self.blocks:
                bad = low if low < 0 else high
                raise IndexError(f"block {bad}: the cache has the blocks 0 to {self.blocks - 1}")
            if distinct and found.unique().numel() != found.numel():
                raise ValueError("blocks names a block twice: what stays in it is left to chance")
        return found.to(self.device, torch.int64)

    def views(self) -> list[torch.Tensor]:
        """[blocks, tokens, heads, head_dim] for each layer and part: what the references use."""
        shape = (self.blocks, self.tokens, self.heads, self.head_dim)
        steps = (self.block_step, self.token_step, self.head_step, 1)
        item_bytes = self.base.element_size()
        found = []
        for number, layer in enumerate(self.layers):
            for part in range(self.parts):
                place = int(self.offsets[number * self.parts + part])
                ahead = place - (layer.data_ptr() - self.base.data_ptr())
                start = layer.storage_offset() + ahead // item_bytes
                found.append(layer.as_strided(shape, steps, start))
        return found


@dataclass(frozen=True)
class Packed:
    """What pack made: the bytes for the wire, and what unpack needs to know of them.

    `data`: [layers * parts, tokens, heads, head_dim], contiguous. `block_tokens`: tokens in a block
    where it was packed. `scales`: float32 [layers * parts, blocks], with float8 data only: the
    value is data * scale. `checksums`: int32 [layers * parts, blocks] where they were asked for.
    """

    data: torch.Tensor
    block_tokens: int
    scales: torch.Tensor | None = None
    checksums: torch.Tensor | None = None


def checksum_reference(data: torch.Tensor, block_tokens: int) -> torch.Tensor:
    """The checksum of each packed block: the sum of w[i] * (2 i + 1) modulo 2**32 over its
    little-endian 32-bit words w, the last filled up with zeros.

    Every weight is odd, so that one changed word always shows; the weights differ, so that moved
    words do. The sum can be built in any order. `data`: as in Packed. Returns int32
    [layers * parts, blocks].
    """
    planes, tokens, *rest = data.shape
    block_bytes = block_tokens * math.prod(rest) * data.element_size()
    blocks = tokens // block_tokens
    rows = data.contiguous().view(torch.uint8).reshape(planes, blocks, block_bytes)
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[2] % 4))
    words = rows.contiguous().view(torch.int32)
    weights = torch.arange(words.shape[2], dtype=torch.int32, device=words.device) * 2 + 1
    return (words * weights).sum(2, dtype=torch.int64).to(torch.int32)


def _kind(layer: torch.Tensor) -> str:
    return f"{layer.dtype} {list(layer.shape)}, strides {list(layer.stride())}, on {layer.device}"
