"""Stage: api. Paged caches: one segment of many layers, of which whole blocks are moved by index.

Made by the caller; any thread may use them. What always holds: a cache keeps its layers alive, and
its segment is closed before they go; each notification is handed out exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch

from . import _engine, cuda, segment, tensors
from .blocks import Blocks, Layer, matched
from .errors import AccessError
from .ticket import TensorLayout, Ticket

if TYPE_CHECKING:
    from .engines import Engine

NOTE_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Notification:
    """What a peer said when all bytes of a `write_blocks` had landed."""

    payload: bytes
    peer: str  # the sender's name


class KVCache:
    """A paged cache whose blocks peers may fill or fetch: one segment for all of its layers.

    `layers` are tensors of shape [blocks, ...], or [2, blocks, ...] (keys and values) with
    `block_dim=1`, of any dtype and strides, all with the same number of blocks. The cache keeps
    them alive. Attributes: `blocks`, `device`, `access`. Usable as a context manager.
    Raises TypeError and ValueError for layers that cannot be shared, naming the layer.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        block_dim: int = 0,
        *,
        access: segment.Access = "read-write",
        engine: Engine | None = None,
    ) -> None:
        if engine is None:
            from .default import engine as default_engine

            engine = default_engine()
        segment.check_access(access)
        self.access = access
        self.layers = _checked_layers(layers, block_dim, "write" in access)
        self.blocks = self.layers[0].shape[block_dim]
        pieces = [piece for layer in self.layers for piece in _by_block(layer, block_dim)]
        self._per_layer = len(pieces) // len(self.layers)
        self._layouts = tuple(
            _block_layout(piece, n, n // self._per_layer) for n, piece in enumerate(pieces)
        )
        planes = [tensors.extent(piece) for piece in pieces]
        self._planes_bytes = tuple(size for _, size in planes)
        bases = [address for address, _ in planes]
        grid = _layers(self._layouts, bases, self._per_layer)
        self._grid = Blocks(grid, self.blocks, "this cache")
        self.device = self.layers[0].device
        device = cuda.device_of(self.layers[0], "cache")
        self._grid.device = device
        self._engine = engine
        self._waiting: deque[tuple[int, bytes]] = deque()
        steps = [layout.strides_bytes[0] for layout in self._layouts]
        self._id, self._key = engine.native.register(
            [(*plane, step) for plane, step in zip(planes, steps, strict=True)],
            "read" in access,
            "write" in access,
            self.blocks,
            device,
        )
        self._closer = segment.close_with(self, engine.native, self._id)

    def ticket(self) -> bytes:
        """The right to touch all blocks that are not revoked later, for `torch_tent.open`.

        Raises AccessError when the cache is closed.
        """
        with self._while_open():
            epoch = self._engine.native.epoch(self._id)
        return Ticket(
            card=self._engine.card,
            segment=self._id,
            key=self._key,
            epoch=epoch,
            access=self.access,
            device=str(self.device),
            planes_bytes=self._planes_bytes,
            tensors=self._layouts,
            block_dim=0,
            blocks=self.blocks,
            per_layer=self._per_layer,
        ).encode()

    def notifications(self) -> Iterator[Notification]:
        """Those that have arrived, each exactly once, only after all of its bytes have landed."""
        with contextlib.suppress(AccessError), self._while_open():
            self._waiting.extend(self._engine.native.notifications(self._id))
        while self._waiting:
            try:
                peer, payload = self._waiting.popleft()
            except IndexError:  # Another thread took the last one.
                return
            yield Notification(payload, self._engine.peer_name(peer))

    def wait_notification(self, timeout: float | None = None) -> Notification | None:
        """The next notification; None when `timeout` seconds passed without one.

        Raises AccessError when the cache is closed.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            for note in self.notifications():
                return note
            self._check_open()
            left = None if end is None else max(0.0, end - time.monotonic())
            if not self._wait(left) and left is not None:
                return next(self.notifications(), None)

    async def __aiter__(self) -> AsyncIterator[Notification]:
        """Notifications as they arrive, until the cache is closed."""
        loop = asyncio.get_running_loop()
        while self._closer.alive:
            for note in self.notifications():
                yield note
            # Bounded, so that a loop that goes on without us is not held by its executor's thread.
            await loop.run_in_executor(None, self._wait_a_moment)

    def revoke(self, blocks: Any) -> None:
        """Takes the right to these blocks back from the holders of all earlier tickets.

        `blocks` is a list of block numbers. When it returns, nothing can land in these blocks, or
        be read from them, any more; transfers that touch them fail with AccessError. A new ticket
        allows them again.
        """
        found = self._grid.indices(blocks, "blocks", distinct=False)
        with self._while_open():
            self._engine.native.revoke(self._id, found)

    def close(self) -> None:
        """Takes all rights back. When it returns, nothing can land in the cache, or be read from
        it, any more. Notifications that have arrived are dropped. Closing again does nothing."""
        self._closer()
        self._waiting.clear()

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._closer.alive else ", closed"
        return f"KVCache({self._grid}, {self.blocks} blocks, {self.access}{state})"

    def _check_open(self) -> None:
        if not self._closer.alive:
            raise AccessError("the cache is closed: make a new KVCache of its layers")

    @contextlib.contextmanager
    def _while_open(self) -> Iterator[None]:
        """Raises AccessError when the cache is closed, before or while the block runs."""
        self._check_open()
        try:
            yield
        except (KeyError, RuntimeError, ValueError):  # the engine knows it no longer
            self._check_open()
            raise

    def _wait(self, seconds: float | None) -> bool:
        """Whether a notification came in time. Raises AccessError when the cache is closed, also
        meanwhile."""
        with self._while_open():
            return self._engine.native.wait_notification(self._id, seconds)

    def _wait_a_moment(self) -> None:
        with contextlib.suppress(AccessError):
            self._wait(0.5)


class RemoteCache:
    """Another process's KVCache, opened from its ticket.

    Attributes: `blocks`, `layer_count`, `device`, `access`, `peer` (its owner's name).
    """

    def __init__(self, origin: segment.Origin, ticket: Ticket) -> None:
        for layout in ticket.tensors:
            segment.dtype_named(layout)
        self.blocks = ticket.blocks
        self.layer_count = len(ticket.tensors) // ticket.per_layer
        self.device = origin.device
        self.access = origin.access
        self.engine = origin.engine
        self.peer = origin.peer_name
        self._origin = origin
        layers = _layers(ticket.tensors, [0] * len(ticket.tensors), ticket.per_layer)
        self._grid = Blocks(layers, ticket.blocks, f"the cache of {self.peer}")
        self._grid.device, self._grid.ours = origin.landing, False

    def __repr__(self) -> str:
        return f"RemoteCache({self._grid}, {self.blocks} blocks, {self.access})"


def check_note(notify: Any) -> bytes | None:
    """The payload of a notification; None for none. Raises TypeError or ValueError."""
    if not isinstance(notify, bytes | bytearray | memoryview):
        raise TypeError(f"notify is a {type(notify).__name__}: it is bytes, b'' for none")
    if len(notify) > NOTE_BYTES_MAX:
        raise ValueError(
            f"notify has {len(notify)} bytes: a notification carries at most {NOTE_BYTES_MAX}; "
            "write more into a segment"
        )
    return bytes(notify) or None


def moved(
    engine: Engine,
    cache: Any,
    ours: Any,
    remote: Any,
    theirs: Any,
    layers: Any,
    verb: Literal["read", "write"],
) -> tuple[segment.Origin, _engine.Layout, _engine.Layout]:
    """What write_blocks and read_blocks move: the right to it, our bytes, the remote bytes.

    `ours` and `theirs` are the block numbers at the two ends, pair by pair.
    Raises TypeError, ValueError, IndexError or AccessError, naming what does not fit.
    """
    if not isinstance(cache, KVCache):
        raise TypeError(f"the cache is a {type(cache).__name__}: it is a KVCache of this process")
    if not isinstance(remote, RemoteCache):
        raise TypeError(
            f"the remote side is a {type(remote).__name__}: it is what open() returned for the "
            "ticket of a KVCache"
        )
    remote._origin.check(engine, verb)
    chosen = matched(cache._grid, remote._grid, layers)
    names = ("src_blocks", "dst_blocks") if verb == "write" else ("dst_blocks", "src_blocks")
    here = cache._grid.indices(ours, names[0], distinct=verb == "read")
    there = remote._grid.indices(theirs, names[1], distinct=verb == "write")
    if len(here) != len(there):
        raise ValueError(
            f"{names[0]} has {len(here)} blocks, {names[1]} has {len(there)}: they go in pairs"
        )
    return remote._origin, cache._grid.layout(here, chosen), remote._grid.layout(there, chosen)


def _by_block(layer: torch.Tensor, block_dim: int) -> list[torch.Tensor]:
    """The layer as tensors [blocks, ...], one for each position before the block dimension."""
    places = itertools.product(*map(range, layer.shape[:block_dim]))
    return [layer[place] for place in places]


def _block_layout(piece: torch.Tensor, plane: int, layer: int) -> TensorLayout:
    """How a tensor [blocks, ...] lies in its plane. Raises ValueError unless blocks lie apart: the
    right to one must not reach into another."""
    layout = segment.tensor_layout(piece, plane)
    _, block_bytes = tensors.extent(piece[0])
    steps = layout.strides_bytes
    if piece.shape[0] == 1:  # Then torch may call the step anything.
        steps = (block_bytes, *steps[1:])
    elif steps[0] < block_bytes:
        raise ValueError(
            f"layer {layer}: its blocks lie in one another (strides {piece.stride()}), so that the "
            "right to one would reach another: make the layer contiguous"
        )
    return msgspec.structs.replace(layout, strides_bytes=steps)


def _layers(
    layouts: Sequence[TensorLayout], bases: Sequence[int], per_layer: int
) -> tuple[Layer, ...]:
    groups = range(0, len(layouts), per_layer)
    return tuple(Layer.of(layouts[n : n + per_layer], bases[n : n + per_layer]) for n in groups)


def _checked_layers(layers: Any, block_dim: int, writable: bool) -> tuple[torch.Tensor, ...]:
    if isinstance(layers, torch.Tensor | np.ndarray):
        raise TypeError("layers is one tensor: give a list of tensors, one per layer")
    found: list[torch.Tensor] = []
    for number, layer in enumerate(layers):
        try:
            tensor = tensors.exported(layer, writable)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {number}: {error}") from error
        if not 0 <= block_dim < tensor.dim():
            raise ValueError(
                f"layer {number} has shape {tuple(tensor.shape)}: it has no dimension {block_dim} "
                "(block_dim) that counts blocks"
            )
        leading = tensor.shape[: block_dim + 1]
        if 0 in leading:
            raise ValueError(f"layer {number} has shape {tuple(tensor.shape)}: it has no blocks")
        if found and leading != found[0].shape[: block_dim + 1]:
            raise ValueError(
                f"layer {number} begins with {tuple(leading)}, layer 0 with "
                f"{tuple(found[0].shape[: block_dim + 1])}: all need the same number of blocks"
            )
        if found and tensor.device != found[0].device:
            raise ValueError(
                f"layer {number} is on {tensor.device}, layer 0 on {found[0].device}: the layers "
                "of one cache are on one device"
            )
        try:
            cuda.device_of(tensor, "layer")
        except ValueError as error:
            raise ValueError(f"layer {number}: {error}") from error
        found.append(tensor)
    if not found:
        raise ValueError("layers is empty: a cache has at least one layer")
    return tuple(found)
