"""Stage: api. Process groups of the backend "tent": how their ranks meet, and who they are.

Called by torch when a group is made (through torch_tent_autoload), and by send and recv; on the
caller's thread. What always holds: all ranks of a group have one context, drawn by its rank 0, that
no other group has had; so a group that was destroyed and made again never hears of the old one.
"""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from . import default, torch_native
from .card import Card
from .engines import Engine
from .errors import TentError
from .meeting import Meeting

_CONTEXTS_PER_GROUP = 4  # As in csrc/collectives/collectives.h: the last one is for send and recv.
_CONTEXT_BYTES = 8
_NO_PEER = 0xFFFFFFFF  # In the place of the own rank: a value that no peer id has.


@dataclass
class GroupPeers:
    """The members of a group as peers of the default engine; ranks are those of the group."""

    context: int
    rank: int
    size: int
    peers: tuple[int, ...]

    def peer_of(self, rank: int) -> int:
        """The engine's peer id of a rank."""
        return self.peers[rank]

    def rank_of(self, peer: int) -> int | None:
        """The rank of an engine's peer id; None for a peer that is no member."""
        for rank, known in enumerate(self.peers):
            if known == peer:
                return rank
        return None


def create(backend_options: Any, group_options: Any) -> Any:
    """Makes the backend of one process group; all its ranks call this at the same time.

    `backend_options`: torch's DistributedBackendOptions: store, group_rank, group_size, timeout,
    group_id, global_ranks_in_group. `group_options`: the caller's `pg_options`, of which there are
    none but those that torch copies from another group of ours.
    Raises DistStoreError naming the ranks that did not come within the timeout, and TentError for
    settings or ranks that cannot work.
    """
    native = torch_native.module()
    if group_options is not None and not isinstance(group_options, native.Options):
        raise TypeError(
            f"the tent backend has no options, but pg_options is a {type(group_options).__name__}: "
            "leave it out, and set TENT_* in the environment"
        )
    engine = default.engine()
    context, peers = _meet(engine, backend_options)
    _let_monitored_barrier_through()
    return native.make_backend(
        engine=engine.native,
        table=engine.native.c_api,
        rank=backend_options.group_rank,
        size=backend_options.group_size,
        context=context,
        peers=peers,
        name=backend_options.group_id,
        timeout=backend_options.timeout,
        global_ranks=backend_options.global_ranks_in_group,
    )


def peers(group: dist.ProcessGroup) -> GroupPeers:
    """Who the ranks of a "tent" group are, for send and recv.

    Raises TentError for a group of another backend.
    """
    native = torch_native.module()
    found = [_backend_for(group, kind) for kind in ("cpu", "cuda")]
    backend = next((b for b in found if isinstance(b, native.TentBackend)), None)
    if backend is None:
        names = " and ".join(sorted({b.name() for b in found if b is not None}))
        raise TentError(f"the group's backend is {names or 'none of CPU or CUDA'}, not tent")
    context = backend.context + _CONTEXTS_PER_GROUP - 1
    return GroupPeers(context, backend.rank(), backend.size(), tuple(backend.peers))


def _backend_for(group: dist.ProcessGroup, kind: str) -> Any:
    """What the group uses for tensors on this kind of device; None where it has nothing."""
    try:
        backend: Any = group._get_backend(torch.device(kind))
    except RuntimeError:
        return None
    while hasattr(backend, "wrapped_pg"):  # TORCH_DISTRIBUTED_DEBUG=DETAIL
        backend = backend.wrapped_pg
    return backend


def _meet(engine: Engine, options: Any) -> tuple[int, list[int]]:
    """Exchanges cards through the group's store: the group's context, and a peer id per rank."""
    rank, size = options.group_rank, options.group_size
    context = secrets.randbits(64 - 2) * _CONTEXTS_PER_GROUP
    if size == 1:
        return context, [_NO_PEER]
    meeting = Meeting(options.store, rank, size, options.timeout, options.group_id)
    records = meeting.records(context.to_bytes(_CONTEXT_BYTES) + engine.card.encode())
    ids = [
        _NO_PEER if member == rank else engine.meet(Card.decode(record[_CONTEXT_BYTES:]))
        for member, record in enumerate(records)
    ]
    return int.from_bytes(records[0][:_CONTEXT_BYTES]), ids


@functools.cache
def _let_monitored_barrier_through() -> None:
    """Makes dist.monitored_barrier work with "tent".

    torch asks for the backend's name and refuses all but "gloo", though a backend can have one. So
    the function is wrapped: for groups of "tent" it goes to the backend, for others to torch.
    """
    original = distributed_c10d.monitored_barrier

    @functools.wraps(original)
    def monitored_barrier(
        group: dist.ProcessGroup | None = None,
        timeout: timedelta | float | None = None,
        wait_all_ranks: bool = False,
    ) -> None:
        if distributed_c10d._rank_not_in_group(group) or dist.get_backend(group) != "tent":
            original(group, timeout, wait_all_ranks)
            return
        if timeout is None:
            timeout = distributed_c10d.default_pg_timeout
        elif not isinstance(timeout, timedelta):
            timeout = timedelta(seconds=timeout)
        used: Any = group if group is not None else dist.group.WORLD
        used.monitored_barrier(timeout, wait_all_ranks=wait_all_ranks)

    distributed_c10d.monitored_barrier = monitored_barrier
    dist.monitored_barrier = monitored_barrier
