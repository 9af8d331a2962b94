"""Stage: api. Ranks as peers: which engine peer a rank of a group is, and what keeps groups apart.

Used by send and recv, on the caller's thread. A group of the "tent" backend already knows its
peers; for any other one the cards go through its store, published and fetched on first use.
What always holds: a rank that is found is a member of the group, and not this process.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from .card import Card
from .errors import TentError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from .engines import Engine


class Peers(Protocol):
    """The members of a group as peers of one engine; ranks are those of the group."""

    @property
    def context(self) -> int:
        """The same in all members, different for every group."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def peer_of(self, rank: int) -> int:
        """The engine's peer id of a rank."""

    def rank_of(self, peer: int) -> int | None:
        """The rank of an engine's peer id; None for a peer that is no member."""


class StorePeers:
    """Peers that meet through a c10d store: each publishes its card, and fetches those it needs."""

    def __init__(self, engine: Engine, store: Store, rank: int, size: int, name: str) -> None:
        self.context = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        self.rank = rank
        self.size = size
        self._engine = engine
        self._store = store
        self._key = f"tent/card/{name}"
        self._peers: dict[int, int] = {}
        store.set(f"{self._key}/{rank}", engine.card.encode())  # type: ignore[arg-type]

    def peer_of(self, rank: int) -> int:
        """See Peers. Waits until that rank has published its card, as long as the store waits."""
        found = self._peers.get(rank)
        if found is None:
            key = f"{self._key}/{rank}"
            try:
                card = self._store.get(key)
            except (RuntimeError, ValueError) as error:
                raise TentError(
                    f"rank {rank} has not said where it can be reached: it must call "
                    f"torch_tent.send or recv in this group, too ({error})"
                ) from error
            found = self._peers[rank] = self._engine.meet(Card.decode(card))
        return found

    def rank_of(self, peer: int) -> int | None:
        """See Peers."""
        for rank in range(self.size):
            if rank == self.rank:
                continue
            known = rank in self._peers or self._store.check([f"{self._key}/{rank}"])
            if known and self.peer_of(rank) == peer:
                return rank
        return None


class Group:
    """A group as send and recv use it. Ranks are those that the caller uses: global ones for a
    process group, as in torch.distributed."""

    def __init__(self, peers: Peers, global_ranks: Mapping[int, int] | None = None) -> None:
        self.context = peers.context
        self._peers = peers
        self._to_group = dict(global_ranks or {n: n for n in range(peers.size)})
        self._from_group = {mine: theirs for theirs, mine in self._to_group.items()}
        self.rank = self._from_group[peers.rank]
        self._known: dict[int, int] = {}

    def peer(self, rank: Any) -> int:
        """The engine's peer id of a rank. Raises ValueError or TypeError for one that is none."""
        found = self._known.get(rank)
        if found is None:
            rank = self._checked(rank)
            found = self._known[rank] = self._peers.peer_of(self._to_group[rank])
        return found

    def rank_of(self, peer: int) -> int | None:
        """The rank of an engine's peer id."""
        for rank, known in self._known.items():
            if known == peer:
                return rank
        inner = self._peers.rank_of(peer)
        return None if inner is None else self._from_group[inner]

    def _checked(self, rank: Any) -> int:
        try:
            found = operator.index(rank)
        except TypeError:
            raise TypeError(f"a rank is an integer, not {rank!r}") from None
        if found == self.rank:
            raise ValueError(
                f"rank {found} is this process: copy the tensor with copy_() instead of sending it"
            )
        if found not in self._to_group:
            raise ValueError(
                f"rank {found} is not in the group, whose ranks are {_shown(self._to_group)}"
            )
        return found


def of_process_group(engine: Engine, group: dist.ProcessGroup) -> Group:
    """The members of a process group, of whatever backend.

    Raises TentError where this process is not a member.
    """
    if dist.get_rank(group) < 0:
        raise TentError("this process is not a member of the group")
    ranks = {rank: place for place, rank in enumerate(dist.get_process_group_ranks(group))}
    if _is_tent(group):
        from . import default, process_group

        if engine is not default.engine():
            raise TentError(
                "a process group of the backend 'tent' belongs to the process's default engine: "
                "use torch_tent.send and recv, or make a group for this engine with Engine.join"
            )
        return Group(process_group.peers(group), ranks)
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    place = dist.get_rank(group)
    return Group(StorePeers(engine, store, place, len(ranks), f"pg/{group.group_name}"), ranks)


def _is_tent(group: dist.ProcessGroup) -> bool:
    try:
        backend: Any = group._get_backend(torch.device("cpu"))
    except RuntimeError:  # No backend for CPU tensors.
        return False
    while hasattr(backend, "wrapped_pg"):  # TORCH_DISTRIBUTED_DEBUG=DETAIL
        backend = backend.wrapped_pg
    name: str = backend.name()
    return name == "tent"


def _shown(ranks: Mapping[int, int]) -> str:
    known = sorted(ranks)
    if known == list(range(len(known))):
        return f"0 to {len(known) - 1}"
    return ", ".join(map(str, known))


def no_group(group: Any) -> Exception:
    """What is raised for `group=` where it names no group that this process is in."""
    if group is None:
        return TentError(
            "there is no process group: call torch.distributed.init_process_group first, give "
            "group=, or use register and open, which need a ticket only"
        )
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        return TentError("this process is not a member of the group")
    return TypeError(f"group is a {type(group).__name__}: it is a process group, or None")
