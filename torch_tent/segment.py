"""Stage: api. Memory that others may read or write: ours (Segment), theirs (RemoteSegment).

Made by `register` and `open`; any thread may use them. What always holds: a segment is closed
before its memory is freed; a RemoteSegment lies inside what its ticket names, views of it too.
"""

from __future__ import annotations

import contextlib
import operator
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from . import _engine, cuda, tensors
from .errors import AccessError, TicketError
from .ticket import ACCESSES, TensorLayout, Ticket

if TYPE_CHECKING:
    from .engines import Engine

Access = Literal["read", "write", "read-write"]

_CLOSED = "the segment is closed: register its memory again for a new ticket"


class Segment:
    """A tensor that holders of a ticket may read or write in place.

    Attributes: `shape`, `dtype`, `device`, `access`. Open until `close()`, or until its memory is
    freed: the Segment keeps the memory alive, the ticket does not. Usable as a context manager.
    """

    def __init__(self, engine: Engine, x: Any, access: Access = "read") -> None:
        """See `torch_tent.register`."""
        check_access(access)
        tensor = tensors.exported(x, "write" in access)
        address, size = tensors.extent(tensor)
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.access = access
        self._engine = engine
        self._kept: Any = (x, tensor)
        self._layout = tensor_layout(tensor, 0)
        self._bytes = size
        self.device = tensor.device
        self._id, self._key = engine.native.register(
            [(address, size, 0)],
            "read" in access,
            "write" in access,
            0,
            cuda.device_of(tensor, "segment"),
        )
        # An array's tensor is ours alone, and says nothing of how long the array lives.
        owner = x if not isinstance(x, torch.Tensor) else tensor.untyped_storage()
        self._closer = close_with(owner, engine.native, self._id)

    def ticket(self) -> bytes:
        """The right to touch this segment, for `torch_tent.open` in another process.

        Raises AccessError when the segment is closed.
        """
        kept = self._kept
        if kept is None or not self._closer.alive:
            raise AccessError(_CLOSED)
        tensors.check_storage(kept[1], "segment")
        try:
            epoch = self._engine.native.epoch(self._id)
        except KeyError:  # closed meanwhile
            raise AccessError(_CLOSED) from None
        return Ticket(
            card=self._engine.card,
            segment=self._id,
            key=self._key,
            epoch=epoch,
            access=self.access,
            device=str(self.device),
            planes_bytes=(self._bytes,),
            tensors=(self._layout,),
        ).encode()

    def close(self) -> None:
        """Takes the right back from all holders of tickets. When it returns, nothing can land in
        the memory, or be read from it, any more. Closing again does nothing."""
        self._closer()
        self._kept = None

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._closer.alive else ", closed"
        return f"Segment(shape={tuple(self.shape)}, dtype={self.dtype}, {self.access}{state})"


class Origin:
    """Whose memory it is, and the right to touch it: shared by all views of an opened ticket."""

    __slots__ = ("access", "device", "engine", "epoch", "key", "peer", "segment")

    def __init__(self, engine: Engine, ticket: Ticket) -> None:
        self.engine = engine
        self.peer = engine.meet(ticket.card)
        self.segment = ticket.segment
        self.key = ticket.key
        self.epoch = ticket.epoch
        self.access = ticket.access
        self.device = torch.device(ticket.device)

    @property
    def landing(self) -> int:
        """The GPU that it is on, as its owner counts them; HOST for ordinary memory."""
        return cuda.HOST if self.device.type == "cpu" else self.device.index or 0

    def check(self, engine: Engine, verb: Literal["read", "write"]) -> None:
        """Raises AccessError when the ticket does not allow it, ValueError for another engine."""
        if engine is not self.engine:
            raise ValueError("the ticket was opened by another Engine: open it with this one")
        if verb not in self.access:
            raise AccessError(
                f"the ticket of {self.peer_name} allows {self.access!r}, not to {verb}: its owner "
                f"must register the memory with access='{verb}' or 'read-write'",
                peer=self.peer_name,
            )

    @property
    def peer_name(self) -> str:
        """What people call the process that owns the memory."""
        return self.engine.peer_name(self.peer)


class RemoteSegment:
    """Another process's tensor, or a view of it: what `write` fills and `read` reads.

    Attributes: `shape`, `dtype`, `device`, `access`, `peer` (its owner's name), `place` (what the
    engine's verbs take). Indexing with
    integers, slices and `...` gives views, as with a tensor; nothing is moved by it.
    """

    def __init__(self, origin: Origin, layout: TensorLayout) -> None:
        self.shape = torch.Size(layout.shape)
        self.dtype = dtype_named(layout)
        self._origin = origin
        self._layout = layout
        piece_bytes, dims = tensors.grid(layout.shape, layout.strides_bytes, layout.item_bytes)
        part = (layout.offset_bytes, layout.plane, piece_bytes, dims, None)
        self._bytes = _engine.Layout([part] if piece_bytes else [], origin.landing)
        self.place: _engine.Place = (
            *(origin.peer, origin.segment, origin.key, origin.epoch),
            *(self._bytes, self.shape, tensors.DTYPE_CODES[self.dtype]),
        )

    @property
    def engine(self) -> Engine:
        """The engine that opened it."""
        return self._origin.engine

    @property
    def device(self) -> torch.device:
        """Where its owner holds it."""
        return self._origin.device

    @property
    def access(self) -> str:
        """What the ticket allows: "read", "write" or "read-write"."""
        return self._origin.access

    @property
    def peer(self) -> str:
        """The name of the process that owns the memory."""
        return self._origin.peer_name

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a RemoteSegment of 0 dimensions has no length")
        return self.shape[0]

    def __getitem__(self, index: Any) -> RemoteSegment:
        """A view. Raises IndexError beyond the bounds, TypeError for other kinds of indices."""
        return RemoteSegment(self._origin, view(self._layout, index))

    def __repr__(self) -> str:
        facts = f"shape={tuple(self.shape)}, dtype={self.dtype}, {self.access}, of {self.peer}"
        return f"RemoteSegment({facts})"


def origin_of(engine: Engine, remote: Any, verb: Literal["read", "write"]) -> Origin:
    """The right to touch the remote memory. Raises TypeError for what is none, and AccessError."""
    if not isinstance(remote, RemoteSegment):
        raise TypeError(
            f"the remote side is a {type(remote).__name__}: it is what open() returned for a "
            "segment's ticket, or a view of that (for caches there are write_blocks, read_blocks)"
        )
    remote._origin.check(engine, verb)
    return remote._origin


def bytes_for(remote: RemoteSegment, tensor: torch.Tensor) -> _engine.Layout:
    """Where the tensor's bytes lie in the remote memory. Raises ValueError or TypeError, naming
    both sides, unless shape and dtype are equal."""
    if tensor.shape != remote.shape:
        raise ValueError(
            f"the shapes differ: {tuple(tensor.shape)} here, {tuple(remote.shape)} in {remote.peer}"
        )
    if tensor.dtype != remote.dtype:
        raise TypeError(f"the dtypes differ: {tensor.dtype} here, {remote.dtype} in {remote.peer}")
    return remote._bytes


def check_access(access: Any) -> None:
    """Raises ValueError for what is not an access right."""
    if access not in ACCESSES:
        names = ", ".join(map(repr, ACCESSES))
        raise ValueError(f"access is {access!r}: it can be one of {names}")


def close_with(owner: Any, native: _engine.Engine, segment: int) -> weakref.finalize[Any, Any]:
    """Something to call that closes the segment, once: it is called at the latest when `owner`, on
    whose life its memory depends, goes."""
    closer = weakref.finalize(owner, _close, native, segment)
    closer.atexit = False  # The engine closes all at exit.
    return closer


def _close(native: _engine.Engine, segment: int) -> None:
    with contextlib.suppress(RuntimeError):  # An engine that is closed has closed its segments.
        native.close_segment(segment)


def tensor_layout(tensor: torch.Tensor, plane: int) -> TensorLayout:
    """How a tensor that begins its plane lies in it, for a ticket."""
    return TensorLayout(
        plane=plane,
        offset_bytes=0,
        shape=tuple(tensor.shape),
        strides_bytes=tuple(tensors.steps(tensor)),
        dtype=str(tensor.dtype).removeprefix("torch."),
        item_bytes=tensor.element_size(),
    )


def dtype_named(layout: TensorLayout) -> torch.dtype:
    """The dtype that a ticket names. Raises TicketError where this torch does not have it."""
    dtype = tensors.DTYPE_NAMES.get(layout.dtype)
    if dtype is None or dtype.itemsize != layout.item_bytes:
        raise TicketError(
            f"the ticket is of dtype {layout.dtype!r}, which torch {torch.__version__} does not "
            "have: use the same version at both ends"
        )
    return dtype


def view(layout: TensorLayout, index: Any) -> TensorLayout:
    """The part of a tensor's layout that an index selects: integers, slices, `...`.

    Raises IndexError beyond the bounds, TypeError for other kinds of indices, ValueError for a
    slice that does not step forward.
    """
    offset = layout.offset_bytes
    shape: list[int] = []
    strides: list[int] = []
    entries = _full_index(index, len(layout.shape))
    for dim, entry in enumerate(entries):
        count, step = layout.shape[dim], layout.strides_bytes[dim]
        if isinstance(entry, slice):
            chosen = _chosen(entry, count)
            offset += chosen.start * step if chosen else 0
            shape.append(len(chosen))
            strides.append(chosen.step * step)
            continue
        position = _position(entry, count, dim)
        offset += position * step
    return TensorLayout(
        layout.plane, offset, tuple(shape), tuple(strides), layout.dtype, layout.item_bytes
    )


def _full_index(index: Any, dims: int) -> Sequence[Any]:
    """One entry per dimension: `...` and what is left out at the end select all."""
    entries = list(index) if isinstance(index, tuple) else [index]
    skips = [place for place, entry in enumerate(entries) if entry is Ellipsis]
    if len(skips) > 1:
        raise IndexError("an index can have only one '...'")
    missing = dims - (len(entries) - len(skips))
    if missing < 0:
        raise IndexError(f"{len(entries) - len(skips)} indices for {dims} dimensions")
    place = skips[0] if skips else len(entries)
    return [*entries[:place], *[slice(None)] * missing, *entries[place + 1 :]]


def _chosen(entry: slice, count: int) -> range:
    if entry.step is not None and operator.index(entry.step) <= 0:
        raise ValueError(f"a slice of step {entry.step}: only positive steps are views")
    return range(count)[entry]


def _position(entry: Any, count: int, dim: int) -> int:
    try:
        if isinstance(entry, bool | torch.Tensor):
            raise TypeError
        position = operator.index(entry)
    except TypeError:
        kind = "None" if entry is None else type(entry).__name__
        raise TypeError(
            f"a remote segment cannot be indexed with {kind}: use integers, slices and ..., or "
            "read it whole and index the result"
        ) from None
    if not -count <= position < count:
        raise IndexError(f"index {position} is out of range for dimension {dim} of size {count}")
    return position + count if position < 0 else position
