"""Stage: tests of the kernels. Small paged caches of every layout, with fresh random content.

The kernels run in Triton's interpreter where there is no GPU (conftest.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from triton_kernels import Paged

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Form:
    """How a cache lies: `packing` is "layers" (a tensor each), "one" (views of a single tensor) or
    "interleaved" (a view in which the layers of a block lie together)."""

    order: str = "NHD"
    parts: int = 2
    packing: str = "layers"
    layers: int = 3
    blocks: int = 11
    tokens: int = 16
    heads: int = 4
    head_dim: int = 32
    dtype: torch.dtype = torch.bfloat16

    def tensors(self, fill: str = "random") -> list[torch.Tensor]:
        inner = (self.tokens, self.heads) if self.order == "NHD" else (self.heads, self.tokens)
        block = (*inner, self.head_dim)
        leading = (self.parts, self.blocks) if self.parts else (self.blocks,)
        if self.packing == "interleaved":
            leading = (self.blocks, self.layers, self.parts) if self.parts else leading
        elif self.packing == "one":
            leading = (self.layers, *leading)
        count = 1 if self.packing != "layers" else self.layers
        made = [_content((*leading, *block), self.dtype, fill) for _ in range(count)]
        if self.packing == "one":
            return list(made[0].unbind(0))
        if self.packing == "interleaved":
            return [layer.transpose(0, 1) for layer in made[0].unbind(1)]
        return made

    def paged(self, tensors: list[torch.Tensor]) -> Paged:
        return Paged.of(tensors, 1 if self.parts else 0, self.order)


def _content(shape: tuple[int, ...], dtype: torch.dtype, fill: str) -> torch.Tensor:
    if fill == "poison":
        raw = torch.full((*shape[:-1], shape[-1] * dtype.itemsize), 0xA5, dtype=torch.uint8)
    elif dtype.is_floating_point and dtype.itemsize > 1:
        # Sizes over many powers of two, so that float8 meets its subnormal numbers too.
        spread = torch.exp2(torch.randint(-12, 5, shape).float())
        return (torch.randn(shape) * spread).to(dtype).to(DEVICE)
    else:
        raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8)
    return raw.view(dtype).to(DEVICE)


def same_bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether shape, dtype and every bit are equal; two that are None are, too."""
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


FORMS = [
    Form(),
    Form(order="HND"),
    Form(parts=0),
    Form(packing="one"),
    Form(packing="one", order="HND", parts=0),
    Form(packing="interleaved"),
    Form(tokens=1, heads=1, head_dim=1),
    Form(tokens=3, heads=5, head_dim=7, layers=1),
    Form(order="HND", tokens=5, heads=3, head_dim=9),
    Form(dtype=torch.uint8, head_dim=13, heads=3),
    Form(dtype=torch.float32, head_dim=6),
    Form(dtype=torch.float16, tokens=32, head_dim=80),
    Form(dtype=torch.float8_e4m3fn),
    Form(dtype=torch.int64, tokens=2),
]
