"""Stage: api. Lists of blocks as layouts: which bytes they are, and whether the two ends agree.

Used by caches, ours and remote, on the caller's thread; values. What always holds: a layer adds one
part (or one per leading position, as for keys and values) to a layout, however many blocks there
are; an index list is checked and converted once, for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import _engine, cuda, tensors
from .ticket import TensorLayout

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Layer:
    """How the blocks of one layer lie in memory; the same for our layers and remote ones."""

    dtype: str
    block_shape: tuple[int, ...]
    places: tuple[tuple[int, int], ...]  # (address or offset of block 0, plane), one per part
    piece_bytes: int
    dims: tuple[tuple[int, int], ...]  # within a block
    block_step: int  # bytes from one block to the next

    @staticmethod
    def of(layouts: Sequence[TensorLayout], bases: Sequence[int]) -> Layer:
        """A layer from its tensors [blocks, ...], one per leading position, all of one kind.
        `bases` are added to their offsets: the addresses of the planes of our own layers."""
        first = layouts[0]
        piece_bytes, dims = tensors.grid(first.shape[1:], first.strides_bytes[1:], first.item_bytes)
        return Layer(
            dtype=first.dtype,
            block_shape=first.shape[1:],
            places=tuple(
                (base + layout.offset_bytes, layout.plane)
                for base, layout in zip(bases, layouts, strict=True)
            ),
            piece_bytes=piece_bytes,
            dims=tuple(dims),
            block_step=first.strides_bytes[0],
        )

    def parts(self, blocks: Indices) -> Iterator[tensors.Part]:
        """Where these blocks lie, in the order in which both ends count bytes."""
        dims = ((len(blocks), self.block_step), *self.dims)
        return ((base, plane, self.piece_bytes, dims, blocks) for base, plane in self.places)

    def __str__(self) -> str:
        several = f"{len(self.places)} x " if len(self.places) > 1 else ""
        return f"{several}{self.dtype}{list(self.block_shape)}"


class Blocks:
    """The blocks of a cache, ours or remote, as the verbs see them."""

    def __init__(self, layers: tuple[Layer, ...], blocks: int, owner: str) -> None:
        self.layers = layers
        self.blocks = blocks
        self.owner = owner
        self.device = cuda.HOST  # As their owner counts its GPUs.
        self.ours = True

    def layout(self, indices: Indices, chosen: Sequence[int]) -> _engine.Layout:
        """The bytes of these blocks in these layers."""
        if len(indices) == 0:
            return _engine.Layout([])
        return _engine.Layout(
            [p for n in chosen for p in self.layers[n].parts(indices) if p[2] > 0],
            self.device,
            cuda.current_stream(self.device) if self.ours else 0,
        )

    def indices(self, given: Any, name: str, distinct: bool) -> Indices:
        """A list of block numbers, checked. `distinct`: none may come twice."""
        found = _as_int64(given, name)
        if len(found) == 0:
            return found
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= self.blocks:
            bad = low if low < 0 else high
            place = int(np.argmax(found == bad))
            raise IndexError(
                f"{name}[{place}] is {bad}: {self.owner} has the blocks 0 to {self.blocks - 1}"
            )
        if distinct:
            seen = np.zeros(self.blocks, np.bool_)
            seen[found] = True
            if int(np.count_nonzero(seen)) != len(found):
                _raise_duplicate(found, name)
        return found

    def __str__(self) -> str:
        kinds = ", ".join(dict.fromkeys(map(str, self.layers)))
        return f"{self.owner}: {len(self.layers)} layers of blocks {kinds}"


def matched(ours: Blocks, theirs: Blocks, layers: Any) -> Sequence[int]:
    """The layers to move. Raises ValueError, naming both sides, where their blocks differ."""
    chosen = range(len(ours.layers)) if layers is None else _as_int64(layers, "layers").tolist()
    if layers is None and len(ours.layers) != len(theirs.layers):
        raise ValueError(f"the two caches differ in layers: {ours}; {theirs}")
    fewest = min(len(ours.layers), len(theirs.layers))
    for number in chosen:
        if not 0 <= number < fewest:
            raise IndexError(f"layer {number} is not in both caches: {ours}; {theirs}")
        one, other = ours.layers[number], theirs.layers[number]
        if str(one) != str(other):
            raise ValueError(
                f"the blocks of layer {number} differ: {one} in {ours.owner}, {other} in "
                f"{theirs.owner}"
            )
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"layers names a layer twice: {list(chosen)}")
    return chosen


def _as_int64(given: Any, name: str) -> Indices:
    """A one-dimensional list of integers as an array of its own or the caller's memory."""
    if isinstance(given, range):
        return np.arange(given.start, given.stop, given.step, dtype=np.int64)
    if isinstance(given, torch.Tensor):
        if given.device.type != "cpu":
            raise ValueError(f"{name} is on {given.device}: give a CPU tensor")
        found = given.detach().resolve_neg().numpy()
    else:
        found = np.asarray(given)
    if found.ndim != 1:
        raise ValueError(f"{name} has {found.ndim} dimensions: it is a list of numbers")
    if found.size == 0:
        return np.empty(0, np.int64)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} has elements of {found.dtype}: they must be integers")
    if found.dtype == np.uint64 and int(found.max()) >= 1 << 63:
        raise IndexError(f"{name} has the number {int(found.max())}, which is beyond 64-bit signed")
    return np.ascontiguousarray(found, np.int64)


def _raise_duplicate(found: Indices, name: str) -> None:
    order = np.argsort(found, kind="stable")
    again = int(np.argmax(found[order][1:] == found[order][:-1]))
    first, second = int(order[again]), int(order[again + 1])
    raise ValueError(
        f"{name} names block {int(found[first])} twice, at {first} and {second}: which of the two "
        "would stay in it is left to chance"
    )
