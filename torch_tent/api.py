"""Stage: api. The verbs of the package: what they take, return and raise. Start reading here.

Called by users, on any thread; each hands over to the process's default engine at once. What always
holds: what cannot work raises here, at the call, with nothing moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .default import engine
from .engines import Engine
from .kv import KVCache, RemoteCache
from .options import Priority, Require
from .segment import Access, RemoteSegment, Segment
from .transfer import Transfer


def send(
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
    """Sends a tensor to a rank, which receives it with `recv` and the same tag.

    `x`: CPU or CUDA tensor of any shape, dtype and strides, NumPy array, or anything with DLPack.
    It must not change before the transfer has ended; what the current CUDA stream has queued comes
    first. Its elements travel in row-major order; the receiver needs as many bytes and the same
    dtype, not the same shape.
    `dst`: rank in the whole job, as in torch.distributed. `tag`: 0 to 2**63 - 1; messages of one
    tag arrive in the order of their sends.
    `group`: a process group of any backend (None: the default one), or what `Engine.join` made.
    `priority`: "foreground" goes before "background". `timeout`: seconds until it fails with
    TransferTimeout. `deadline`: seconds from now; earlier ones go first (nothing fails when it is
    missed). `require`: "shm" (this host's memory), "tcp", "rdma" or "nvlink": no other path.

    The bytes go in slices over all rails at once, after TENT's slice spraying (arXiv 2604.00368).
    Returns a Transfer without a value; it has succeeded once every byte has landed (small sends:
    at the peer, where they wait for their `recv`).
    Raises TypeError and ValueError for memory, rank, tag or options that cannot be used, TentError
    without a group, and TransferError where `require` cannot be met. The Transfer fails with
    TransferError (no rail, the two ends disagree), PeerLostError, TransferTimeout or
    TransferCancelled.
    """
    return engine().send(
        x,
        dst,
        tag,
        group=group,
        priority=priority,
        timeout=timeout,
        deadline=deadline,
        require=require,
    )


def recv(
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
    """Receives into a tensor what a rank sends with `send` and the same tag.

    `y`: CPU or CUDA tensor (or what shares its memory) of any strides whose elements do not
    overlap. Until the transfer has ended, its content is undefined.
    `src`: the sender's rank; None: any, and `transfer.source` says which. The other options are
    those of `send`.

    Returns a Transfer whose value is the tensor, filled. Raises as `send` does; ValueError, too,
    for a destination that must not be written.
    """
    return engine().recv(
        y,
        src,
        tag,
        group=group,
        priority=priority,
        timeout=timeout,
        deadline=deadline,
        require=require,
    )


def register(x: Any, access: Access = "read") -> Segment:
    """Opens a tensor's memory to whoever is given a ticket of it.

    `x`: tensor, NumPy array or anything with DLPack, of any shape, dtype and strides. Holders
    of the ticket can touch the bytes from its first to its last element, and no others.
    `access`: "read", "write" or "read-write", seen from the other side.

    Returns a Segment; it stays open until `close()`, or until the memory is freed. The storage of a
    CPU tensor can no longer be resized, as after `x.numpy()`; that of a CUDA tensor must not be.
    Raises TypeError and ValueError for memory that cannot be shared.
    """
    return engine().register(x, access)


def open(ticket: bytes) -> RemoteSegment | RemoteCache:
    """What a ticket of another process gives access to; that process's Python is not involved.

    Returns a RemoteSegment for the ticket of a Segment, a RemoteCache for that of a KVCache.
    Raises TicketError for bytes that are no ticket of this version, TentError for a ticket of this
    very engine, and PeerLostError where the process that made it is known to be gone.
    """
    return engine().open(ticket)


def write(
    x: Any,
    remote: RemoteSegment,
    *,
    priority: Priority = "foreground",
    timeout: float | None = None,
    deadline: float | None = None,
    require: Require = None,
) -> Transfer:
    """Writes a tensor into another process's memory.

    `x`: as in `send`, of the shape and dtype of `remote`. `remote`: what `open` returned for a
    ticket that allows it, or a view of that. The options are those of `send`.

    Returns a Transfer without a value; it has succeeded once every byte has landed.
    Raises AccessError where the ticket does not allow it, TypeError and ValueError for what does
    not fit. The Transfer fails as that of `send`, or with AccessError when the segment was closed.
    """
    return remote_engine(remote).write(
        x, remote, priority=priority, timeout=timeout, deadline=deadline, require=require
    )


def read(
    remote: RemoteSegment,
    out: Any = None,
    *,
    priority: Priority = "foreground",
    timeout: float | None = None,
    deadline: float | None = None,
    require: Require = None,
) -> Transfer:
    """Reads another process's memory into a tensor.

    `remote`: as in `write`. `out`: the tensor to fill, of its shape and dtype; None: a new one.
    The options are those of `send`.

    Returns a Transfer whose value is the tensor, filled. Raises as `write` does.
    """
    return remote_engine(remote).read(
        remote, out, priority=priority, timeout=timeout, deadline=deadline, require=require
    )


def write_blocks(
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
    """Writes blocks of a cache into blocks of another process's cache, in all or some layers.

    `src_blocks`, `dst_blocks`: block numbers, pair by pair: tensors, NumPy arrays or sequences of
    integers, of one length; no destination twice. `layers`: layer numbers, the same at both ends;
    None: all. `notify`: up to 64 KiB that the owner of the remote cache finds in
    `notifications()`, once, after all bytes have landed; b"": nothing. The options are those of
    `send`.

    Returns a Transfer without a value. Raises TypeError, ValueError and IndexError for blocks or
    layers that do not fit, naming them and both sides; AccessError where the ticket does not allow
    it. The Transfer fails with AccessError when a block was revoked.
    """
    return remote_engine(remote).write_blocks(
        cache,
        src_blocks,
        remote,
        dst_blocks,
        layers,
        notify,
        priority=priority,
        timeout=timeout,
        deadline=deadline,
        require=require,
    )


def read_blocks(
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
    """Reads blocks of another process's cache into blocks of ours: `write_blocks` the other way.

    The arguments, the Transfer and the errors are those of `write_blocks`.
    """
    return remote_engine(remote).read_blocks(
        remote,
        src_blocks,
        cache,
        dst_blocks,
        layers,
        priority=priority,
        timeout=timeout,
        deadline=deadline,
        require=require,
    )


def empty(shape: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor in memory that processes of the same host can map: the fastest path between them.

    `shape`: one integer or several. `dtype`: None for torch's default one. An ordinary CPU tensor
    in huge-page-advised memory, zero at first; the memory is freed with the last tensor that uses
    it. Raises TypeError and ValueError for shapes and dtypes that are none, TentError where there
    is no such memory.
    """
    return engine().empty(shape, dtype)


def stats() -> dict[str, Any]:
    """What the default engine has done: counters of transfers and rails, as a plain dict."""
    return engine().stats()


def remote_engine(remote: Any) -> Engine:
    """The engine that opened the remote side; the default one says what is wrong with others."""
    return remote.engine if isinstance(remote, RemoteSegment | RemoteCache) else engine()
