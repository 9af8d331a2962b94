"""Stage: api. The bytes that let another process open a segment: the owner's card, the right, the
layout.

Made by `Segment.ticket` and `KVCache.ticket`, read by `tent.open`; any thread, a value. What always
holds: a Ticket that exists describes tensors whose bytes lie inside their planes.
"""

from __future__ import annotations

import msgspec

from . import envelope
from .card import Card

ACCESSES = ("read", "write", "read-write")
DIMS_MAX = 64
INT64_MAX = (1 << 63) - 1


class TensorLayout(msgspec.Struct, frozen=True, array_like=True):
    """One exported tensor: where it lies in the segment. Strides and offsets are bytes."""

    plane: int
    offset_bytes: int
    shape: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    dtype: str  # without "torch.", as in "bfloat16"
    item_bytes: int

    def __post_init__(self) -> None:
        _check(len(self.shape) == len(self.strides_bytes), "shape and strides differ in length")
        _check(len(self.shape) <= DIMS_MAX, f"more than {DIMS_MAX} dimensions")
        _check(all(0 <= count <= INT64_MAX for count in self.shape), "a negative size")
        _check(self.plane >= 0 and self.offset_bytes >= 0, "a negative plane or offset")
        _check(1 <= self.item_bytes <= 16, f"elements of {self.item_bytes} bytes")
        _check(len(self.dtype) <= 32, "the dtype's name is too long")

    def extent(self) -> tuple[int, int]:
        """Lowest and one-past-highest byte that the tensor touches in its plane."""
        if 0 in self.shape:
            return self.offset_bytes, self.offset_bytes
        spans = [(n - 1) * step for n, step in zip(self.shape, self.strides_bytes, strict=True)]
        low = self.offset_bytes + sum(span for span in spans if span < 0)
        high = self.offset_bytes + sum(span for span in spans if span > 0) + self.item_bytes
        return low, high


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """The right to touch a segment, and what is in it."""

    card: Card
    segment: int
    key: int
    epoch: int
    access: str
    device: str
    planes_bytes: tuple[int, ...]  # the segment's pieces of memory
    tensors: tuple[TensorLayout, ...]  # one for a tensor, `per_layer` per layer for a block cache
    block_dim: int | None = None  # the dimension that counts blocks; None: not a block cache
    blocks: int = 0
    per_layer: int = 1  # two where keys and values of a layer are apart

    def __post_init__(self) -> None:
        _check(0 <= self.segment < 1 << 32 and 0 <= self.epoch < 1 << 32, "no such segment")
        _check(0 <= self.key < 1 << 64, "the key has no 64 bits")
        _check(self.access in ACCESSES, f"access {self.access!r} is none of {ACCESSES}")
        _check(len(self.device) <= 32, "the device's name is too long")
        _check(all(0 <= size <= INT64_MAX for size in self.planes_bytes), "a plane's size")
        _check(len(self.tensors) > 0, "no tensor")
        whole = self.per_layer > 0 and len(self.tensors) % self.per_layer == 0
        _check(whole, f"{len(self.tensors)} tensors are no layers of {self.per_layer}")
        for tensor in self.tensors:
            _check(tensor.plane < len(self.planes_bytes), f"plane {tensor.plane} is not there")
            low, high = tensor.extent()
            fits = low >= 0 and high <= self.planes_bytes[tensor.plane]
            _check(fits, "a tensor that reaches beyond its memory")
            if self.block_dim is not None:
                inside = 0 <= self.block_dim < len(tensor.shape)
                _check(inside, f"block dimension {self.block_dim} is not there")
                _check(tensor.shape[self.block_dim] == self.blocks, "the number of blocks")

    def encode(self) -> bytes:
        """The ticket as bytes, to be handed over by any channel."""
        return envelope.wrap(b"T", self)

    @staticmethod
    def decode(data: bytes | bytearray | memoryview) -> Ticket:
        """The ticket in these bytes. Raises TicketError for bytes that are not one."""
        return envelope.unwrap(b"T", data, _decoder)


def _check(good: bool, complaint: str) -> None:
    if not good:
        raise ValueError(complaint)


_decoder = msgspec.msgpack.Decoder(Ticket)
