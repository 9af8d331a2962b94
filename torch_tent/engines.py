"""Stage: api. An Engine owns all state: the data plane, the control plane, and what goes on there.

Made by the first verb (the process's default engine) or by the caller; any thread may use it. What
always holds: after `close()` no transfer runs and no thread is left; it is closed at exit at the
latest; in a forked child it says so instead of hanging.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _world

from . import _engine, exits, forks, groups, kv, memory, options, segment, storages, telemetry
from .errors import TentError, TransferError
from .kv import KVCache, RemoteCache
from .rendezvous import ControlPlane
from .segment import RemoteSegment, Segment
from .settings import Settings
from .ticket import Ticket
from .transfer import Flights, Transfer

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from .card import Card
    from .options import Priority, Require

_FOREGROUND = "foreground"
_TAG_MAX = (1 << 63) - 1


class Engine:
    """Moves tensors for this process. The functions of `torch_tent` use the default one.

    `settings`: how; None reads the environment (TENT_*), once. `name`: what peers call it; "": the
    host and process id. `advertise` may change the card that peers get to see (forwarded ports).
    Several in one process are independent. Attributes: `settings`, `card` (where it is reached).
    Raises SettingsError for settings that cannot be used, and where it cannot listen.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        name: str = "",
        advertise: Callable[[Card], Card] | None = None,
    ) -> None:
        self.settings = Settings.from_environment() if settings is None else settings
        self.native = _engine.Engine(self.settings.for_engine())
        try:
            self._control = ControlPlane(self.native, self.settings, name=name, advertise=advertise)
            self._eyes = telemetry.Eyes(self.native, self._control, self.settings)
        except BaseException:
            self.native.close()
            raise
        self.card: Card = self._control.card()
        self.flights = Flights(self.native, self._control)
        self._memory = storages.Storages(self.native, self.card, self.settings)
        self._plain = self.native.verbs(self._memory.used, storages.KEPT_BYTES_MIN)
        self.native.on_done(_tell(weakref.ref(self.flights)))
        self._own_name = self.card.name
        self.forked = False  # True in a child of the process that made it
        self.closed = False
        self._groups: weakref.WeakKeyDictionary[Any, groups.Group] = weakref.WeakKeyDictionary()
        self._latest: tuple[Any, groups.Group | None] = (_nothing, None)
        # In this order: the control plane waits for the data plane's events.
        owned = (self._eyes, self.native, self._control)
        self._closer = weakref.finalize(self, _close, self.flights, *owned)
        forks.watch(self)
        exits.watch(self)

    # ---- two-sided: both ends name the other -------------------------------------------------

    def send(
        self,
        x: Any,
        dst: int,
        tag: int = 0,
        *,
        group: Any = None,
        priority: Priority = "foreground",
        timeout: float | None = None,
        deadline: float | None = None,
        require: Require = None,
    ) -> Transfer:
        """See `torch_tent.send`."""
        members = self._group(group)
        peer = members.peer(dst)
        if priority is _FOREGROUND and timeout is None and deadline is None and require is None:
            operation = self._plain.send(x, peer, members.context, tag)
            if operation is not None:
                return self.flights.start(operation, x, members.rank, watched=True)
        tensor, layout, code = self._memory.source(x)
        operation = self.native.send(
            peer,
            members.context,
            tag if tag.__class__ is int and 0 <= tag <= _TAG_MAX else _tag(tag),
            code,
            layout,
            self._options(peer, layout, priority, timeout, deadline, require),
        )
        return self.flights.start(operation, (x, tensor), members.rank)

    def recv(
        self,
        y: Any,
        src: int | None = None,
        tag: int = 0,
        *,
        group: Any = None,
        priority: Priority = "foreground",
        timeout: float | None = None,
        deadline: float | None = None,
        require: Require = None,
    ) -> Transfer:
        """See `torch_tent.recv`."""
        members = self._group(group)
        peer = None if src is None else members.peer(src)
        if priority is _FOREGROUND and timeout is None and deadline is None and require is None:
            operation = self._plain.recv(y, peer, members.context, tag)
            if operation is not None:
                return self.flights.start(operation, y, src, y, members.rank_of, True)
        tensor, layout, code = self._memory.destination(y)
        operation = self.native.recv(
            peer,
            members.context,
            tag if tag.__class__ is int and 0 <= tag <= _TAG_MAX else _tag(tag),
            code,
            layout,
            self._options(peer, layout, priority, timeout, deadline, require),
        )
        return self.flights.start(operation, (y, tensor), src, tensor, members.rank_of)

    # ---- one-sided: a ticket is enough -------------------------------------------------------

    def register(self, x: Any, access: segment.Access = "read") -> Segment:
        """See `torch_tent.register`."""
        return Segment(self, x, access)

    def open(self, ticket: bytes) -> RemoteSegment | RemoteCache:
        """See `torch_tent.open`."""
        if isinstance(ticket, Segment | KVCache):
            raise TypeError(f"give the bytes of {type(ticket).__name__}.ticket(), not the object")
        found = Ticket.decode(ticket)
        origin = segment.Origin(self, found)
        if found.block_dim is not None:
            return RemoteCache(origin, found)
        return RemoteSegment(origin, found.tensors[0])

    def write(
        self,
        x: Any,
        remote: RemoteSegment,
        *,
        priority: Priority = "foreground",
        timeout: float | None = None,
        deadline: float | None = None,
        require: Require = None,
    ) -> Transfer:
        """See `torch_tent.write`."""
        origin = segment.origin_of(self, remote, "write")
        if priority is _FOREGROUND and timeout is None and deadline is None and require is None:
            operation = self._plain.write(x, remote.place)
            if operation is not None:
                return self.flights.start(operation, x, self._own_name, watched=True)
        tensor, layout, _ = self._memory.source(x)
        target = segment.bytes_for(remote, tensor)
        operation = self.native.write(
            origin.peer,
            layout,
            origin.segment,
            origin.key,
            origin.epoch,
            target,
            None,
            self._options(origin.peer, layout, priority, timeout, deadline, require),
        )
        return self.flights.start(operation, (x, tensor), self._own_name)

    def read(
        self,
        remote: RemoteSegment,
        out: Any = None,
        *,
        priority: Priority = "foreground",
        timeout: float | None = None,
        deadline: float | None = None,
        require: Require = None,
    ) -> Transfer:
        """See `torch_tent.read`."""
        origin = segment.origin_of(self, remote, "read")
        if out is None:
            out = torch.empty(remote.shape, dtype=remote.dtype)
        if priority is _FOREGROUND and timeout is None and deadline is None and require is None:
            operation = self._plain.read(out, remote.place)
            if operation is not None:
                return self.flights.start(operation, out, origin.peer_name, out, watched=True)
        tensor, layout, _ = self._memory.destination(out)
        target = segment.bytes_for(remote, tensor)
        operation = self.native.read(
            origin.peer,
            layout,
            origin.segment,
            origin.key,
            origin.epoch,
            target,
            self._options(origin.peer, layout, priority, timeout, deadline, require),
        )
        return self.flights.start(operation, (out, tensor), origin.peer_name, tensor)

    # ---- blocks of paged caches --------------------------------------------------------------

    def write_blocks(
        self,
        cache: KVCache,
        src_blocks: Any,
        remote: RemoteCache,
        dst_blocks: Any,
        layers: Sequence[int] | None = None,
        notify: bytes = b"",
        *,
        priority: Priority = "foreground",
        timeout: float | None = None,
        deadline: float | None = None,
        require: Require = None,
    ) -> Transfer:
        """See `torch_tent.write_blocks`."""
        origin, local, target = kv.moved(
            self, cache, src_blocks, remote, dst_blocks, layers, "write"
        )
        operation = self.native.write(
            origin.peer,
            local,
            origin.segment,
            origin.key,
            origin.epoch,
            target,
            kv.check_note(notify),
            self._options(origin.peer, local, priority, timeout, deadline, require),
        )
        return self.flights.start(operation, cache, self._own_name)

    def read_blocks(
        self,
        remote: RemoteCache,
        src_blocks: Any,
        cache: KVCache,
        dst_blocks: Any,
        layers: Sequence[int] | None = None,
        *,
        priority: Priority = "foreground",
        timeout: float | None = None,
        deadline: float | None = None,
        require: Require = None,
    ) -> Transfer:
        """See `torch_tent.read_blocks`."""
        origin, local, target = kv.moved(
            self, cache, dst_blocks, remote, src_blocks, layers, "read"
        )
        operation = self.native.read(
            origin.peer,
            local,
            origin.segment,
            origin.key,
            origin.epoch,
            target,
            self._options(origin.peer, local, priority, timeout, deadline, require),
        )
        return self.flights.start(operation, cache, origin.peer_name)

    # ---- the engine itself -------------------------------------------------------------------

    def empty(self, shape: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        """See `torch_tent.empty`."""
        return memory.empty(self.native, shape, dtype)

    def join(self, store: Store, rank: int, size: int, name: str = "") -> groups.Group:
        """Makes a group out of a c10d store, for `send(..., group=)`, without a process group.

        Each of the `size` members, in whatever process, joins with its own `rank` under one `name`,
        which no other group of the store has.
        """
        rank, size = operator.index(rank), operator.index(size)
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} of {size}: ranks go from 0 to size - 1")
        return groups.Group(groups.StorePeers(self, store, rank, size, f"join/{name}"))

    def meet(self, card: Card) -> int:
        """The engine's peer id of the process with this card.

        Raises TentError for the engine's own card, and where no rail can lead there.
        """
        if card.incarnation == self.card.incarnation:
            raise TentError("this is the engine's own memory: use copy_() within one process")
        return self._control.peer(card)

    def peer_name(self, peer: int) -> str:
        """What people call a peer id: host and process, or the engine's name."""
        return self.flights.name_of(peer)

    def stats(self) -> dict[str, Any]:
        """See `torch_tent.stats`."""
        return self._eyes.look()

    def close(self) -> None:
        """Ends every transfer with an error and every thread; peers are told. Idempotent."""
        self.closed = True
        self._closer()

    def _forget(self, forked: forks.Forked) -> None:
        """In a child of the process that made it: nothing of it is used, or closed at exit."""
        self.forked = True
        self._closer.detach()
        self.flights.native = self.native = forked  # type: ignore[assignment]
        self._plain = forked  # type: ignore[assignment]
        for transfer in self.flights.running.values():
            transfer._operation = forked  # type: ignore[assignment]

    def _options(
        self,
        peer: int | None,
        local: _engine.Layout,
        priority: str,
        timeout: float | None,
        deadline: float | None,
        require: str | None,
    ) -> dict[str, Any]:
        if priority is _FOREGROUND and timeout is None and deadline is None and require is None:
            return options.NONE
        found = options.for_engine(priority, timeout, deadline, require, self.settings.transports)
        options.check_memory(require, local)
        if peer is not None and "rails" in found:
            why = self._control.unreachable(peer, found["rails"])
            if why:
                name = self.peer_name(peer)
                raise TransferError(
                    f"require={require!r} cannot be met for {name}: {why}", peer=name, cause=why
                )
        return found

    def _group(self, group: Any) -> groups.Group:
        if group is None:
            group = _world.default_pg
        latest, members = self._latest
        if members is not None and latest() is group:
            return members
        if isinstance(group, groups.Group):
            return group
        if not isinstance(group, dist.ProcessGroup):
            raise groups.no_group(group)
        members = self._groups.get(group)
        if members is None:
            members = self._groups[group] = groups.of_process_group(self, group)
        self._latest = (weakref.ref(group), members)
        return members


def _nothing() -> None:
    """A reference to a group that is none."""


def _tell(flights: weakref.ref[Flights]) -> Callable[[list[int]], None]:
    """What the notifier calls; it must not keep the engine that calls it."""

    def tell(ids: list[int]) -> None:
        found = flights()
        if found is not None:
            found.ended(ids)

    return tell


def _close(flights: Flights, *owned: Any) -> None:
    for each in owned:
        each.close()
    flights.settle()


def _tag(tag: Any) -> int:
    try:
        found = operator.index(tag)
    except TypeError:
        raise TypeError(f"tag is {tag!r}: it is an integer") from None
    if not 0 <= found <= _TAG_MAX:
        raise ValueError(f"tag is {found}: it goes from 0 to 2**63 - 1")
    return found
