"""Stage: api. What is registered with a transport of torch 2.15, and what peers get of it.

Made by `torch_transport.TentTransport`; used on any thread. What always holds: a view is good for
as long as its registration, and a descriptor is the ticket of the whole of it.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .engines import Engine
from .segment import RemoteSegment, Segment
from .ticket import Ticket


@dataclass(frozen=True)
class TentRemoteBuffer:
    """The right to read and write the whole of a peer's registered memory."""

    ticket: bytes
    _opened: dict[int, RemoteSegment] = field(default_factory=dict, compare=False, repr=False)

    def serialize(self) -> bytes:
        """What `deserialize` takes, in another process."""
        return self.ticket

    @classmethod
    def deserialize(cls, data: bytes) -> TentRemoteBuffer:
        """Raises TypeError for what is no bytes, TicketError (a ValueError) for what is no ticket
        of bytes in a row."""
        if type(data) is not bytes:
            raise TypeError(f"a serialized descriptor is bytes, not {type(data).__name__}")
        found = Ticket.decode(data)
        if found.block_dim is not None or found.tensors[0].dtype != "uint8":
            raise ValueError("this is a ticket, but of no memory that a transport has registered")
        return cls(data)

    @functools.cached_property
    def owner(self) -> bytes:
        """The incarnation of the engine whose memory it is."""
        return Ticket.decode(self.ticket).card.incarnation

    def on(self, engine: Engine) -> RemoteSegment:
        """The memory as the engine's verbs take it: opened once for each engine."""
        found = self._opened.get(id(engine))
        if found is None or found.engine is not engine:
            found = self._opened[id(engine)] = engine.open(self.ticket)  # type: ignore[assignment]
        return found  # type: ignore[return-value]


@dataclass(eq=False)
class Registration:
    """Memory that peers may touch: shared by all who registered the same bytes."""

    tensor: torch.Tensor
    bytes: torch.Tensor
    segment: Segment
    key: tuple[int, int, str]
    active: bool = True

    def check(self) -> None:
        if not self.active:
            raise RuntimeError("this memory was unregistered: register it again for new views")
        length = self.tensor.numel() * self.tensor.element_size()
        if (self.tensor.data_ptr(), length) != self.key[:2]:
            raise RuntimeError("the registered tensor was resized, or its storage was replaced")


class TentView:
    """Bytes of registered memory, to be sent."""

    def __init__(self, memory: TentMemory, offset: int, length: int) -> None:
        self.registration = memory.registration
        self.transport = memory.transport
        self.bytes = self.registration.bytes[offset : offset + length]

    def size(self) -> int:
        """In bytes."""
        return self.bytes.numel()


class TentMutableView(TentView):
    """Bytes of registered memory, to be filled."""

    writable: Literal[True] = True


class TentMemory:
    """A tensor that a TentTransport has registered."""

    def __init__(self, transport: Any, registration: Registration) -> None:
        self.transport = transport
        self.registration = registration

    def to_view(self, offset: int | None = None, length: int | None = None) -> TentView:
        """`length` bytes from `offset`; without them from the start, and to the end.

        Raises ValueError for bytes beyond the tensor, RuntimeError when it was unregistered.
        """
        return TentView(self, *self._range(offset, length))

    def to_mutable_view(
        self, offset: int | None = None, length: int | None = None
    ) -> TentMutableView:
        """As `to_view`, for reads that fill it."""
        return TentMutableView(self, *self._range(offset, length))

    def to_remote_buffer(self, *, timeout: float | None = None) -> TentRemoteBuffer:
        """The right to touch all of it, for a peer."""
        check_timeout(timeout)
        self.registration.check()
        return TentRemoteBuffer(self.registration.segment.ticket())

    def _range(self, offset: int | None, length: int | None) -> tuple[int, int]:
        self.registration.check()
        size = self.registration.bytes.numel()
        first = 0 if offset is None else operator.index(offset)
        if not 0 <= first <= size:
            raise ValueError(f"offset {first} is outside of the {size} registered bytes")
        count = size - first if length is None else operator.index(length)
        if not 0 <= count <= size - first:
            raise ValueError(f"{count} bytes from {first} are more than the {size} registered ones")
        return first, count


def check_timeout(seconds: float | None) -> None:
    """Raises ValueError for a time that nobody can wait."""
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"a timeout of {seconds} s: it is finite and not negative")
