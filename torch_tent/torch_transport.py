"""Stage: api. "tent" as a transport of torch 2.15: `torch.distributed._transport.new_transport`.

Found by torch through the entry point `torch.distributed.transports`, and imported only where torch
has that module. All of it is said in the engine's own verbs: a descriptor is a ticket, a transfer a
write or a read. Any thread may call. What always holds: after `unregister_memory` and after `close`
nothing lands in the memory any more, whatever peers do.
Lock order: `_lock` is held while segments are made and closed, never while something is waited for.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import Work
from torch.distributed._transport import Transport, wait_all

from .card import Card
from .engines import Engine
from .transfer import Transfer
from .transport_memory import (
    Registration,
    TentMemory,
    TentMutableView,
    TentRemoteBuffer,
    TentView,
    check_timeout,
)

TIMEOUT_S = 30.0


class TentWork(Work):
    """A transfer as torch.distributed knows it."""

    def __init__(self, transfer: Transfer | None, timeout: float) -> None:
        super().__init__()
        self._transfer = transfer  # None: of no bytes
        self._timeout = timeout
        self._future: torch.futures.Future[list[torch.Tensor]] | None = None
        self._lock = threading.Lock()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Raises the transfer's error, or TransferTimeout (a TimeoutError) when the time passes
        first (0: the operation's own); then the transfer goes on."""
        seconds = timeout.total_seconds()
        check_timeout(seconds)
        if self._transfer is not None:
            self._transfer.wait(seconds or self._timeout)
        return True

    def is_completed(self) -> bool:
        """Whether it has ended, with success or not."""
        return self._transfer is None or self._transfer.done()

    def is_success(self) -> bool:
        """Whether it has ended with success."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> BaseException | None:
        """The error that it ended with."""
        if self._transfer is None or not self._transfer.done():
            return None
        return self._transfer.exception()

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Resolves to an empty list, or to the error, by itself."""
        with self._lock:
            if self._future is not None:
                return self._future
            future = self._future = torch.futures.Future()
        if self._transfer is None:
            future.set_result([])
        else:
            self._transfer.add_done_callback(lambda ended: _resolve(future, ended))
        return future

    def result(self) -> list[torch.Tensor]:
        """Waits; there are no tensors."""
        self.wait()
        return []

    def synchronize(self) -> None:
        """As `wait`."""
        self.wait()


class TentTransport(Transport):  # type: ignore[misc]
    """One end of a connection to one peer, for one-sided reads and writes of registered tensors.

    `device`: the only device whose tensors may be registered; None for any. `engine`: the Engine
    that moves the bytes, which may serve many transports, as long as both ends of a connection have
    different ones; without it the transport makes one, and closes it with itself. `timeout`:
    seconds that each call waits unless it says otherwise; it stops no transfer.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        engine: Engine | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        super().__init__(device)
        check_timeout(timeout)
        self._default_timeout = timeout
        self._owns = engine is None
        self._engine = Engine() if engine is None else engine
        self._peer: Card | None = None
        self._lock = threading.Lock()
        self._registrations: dict[tuple[int, int, str], Registration] = {}
        # The engine keeps those that go on; the others may be forgotten by all.
        self._transfers: weakref.WeakKeyDictionary[Transfer, Registration] = (
            weakref.WeakKeyDictionary()
        )
        self._closing = self._closed = False

    @staticmethod
    def supported() -> bool:
        """Whether the engine was built for this Python."""
        try:
            from . import _engine
        except ImportError:
            return False
        return bool(_engine)

    def bind(self, *, timeout: float | None = None) -> bytes:
        """How to reach this end, for the peer's `connect`."""
        with self._open(timeout):
            return self._engine.card.encode()

    def connect(self, peer_url: bytes, *, timeout: float | None = None) -> int:
        """To the peer whose `bind` gave these bytes; returns 0. Its rails are made when the first
        transfer wants them. Raises TicketError for other bytes, TentError where no rail can lead
        there, RuntimeError when there is a peer already."""
        with self._open(timeout):
            if self._peer is not None:
                raise RuntimeError("this transport is connected: make one for each peer")
            card = Card.decode(peer_url)
            self._engine.meet(card)
            self._peer = card
        return 0

    def connected(self) -> bool:
        """Whether `connect` was called, and `close` was not."""
        return self._peer is not None and not self._closing

    def register_memory(self, tensor: torch.Tensor, *, timeout: float | None = None) -> TentMemory:
        """Lets peers that get its descriptor read and write a contiguous tensor that is not empty.

        Memory that is registered already is shared with those who did it.
        """
        with self._open(timeout):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"a tensor can be registered, not a {type(tensor).__name__}")
            if not tensor.is_contiguous() or tensor.numel() == 0:
                shape = tuple(tensor.shape)
                raise ValueError(f"a contiguous tensor that is not empty is needed, not {shape}")
            self._check_device(tensor.device)
            length = tensor.numel() * tensor.element_size()
            key = (tensor.data_ptr(), length, str(tensor.device))
            found = self._registrations.get(key)
            if found is None:
                line = tensor.detach().reshape(-1).view(torch.uint8)
                segment = self._engine.register(line, access="read-write")
                found = self._registrations[key] = Registration(tensor, line, segment, key)
            return TentMemory(self, found)

    def unregister_memory(self, memory: Any, *, timeout: float | None = None) -> None:
        """When it returns, nothing lands in the memory any more, and no descriptor of it is good.

        Raises RuntimeError while a transfer of ours goes on with it.
        """
        with self._open(timeout):
            if not isinstance(memory, TentMemory) or memory.transport is not self:
                raise TypeError("this memory was not registered by this transport")
            found = memory.registration
            if not found.active:
                return
            if any(view.registration is found for view in self._cuda_stream_views()):
                raise RuntimeError("transfers or graphs of a CUDA stream still use this memory")
            if any(self._transfers.get(each) is found for each in self._running()):
                raise RuntimeError("transfers with this memory go on: wait for them first")
            self._release(found)

    def write(
        self,
        local_buffer: Any,
        remote_buffer: Any,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> int | Work:
        """Fills the start of the peer's memory with the view's bytes."""
        return self._move(local_buffer, remote_buffer, False, async_op, timeout)

    def read(
        self,
        local_buffer: Any,
        remote_buffer: Any,
        *,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> int | Work:
        """Fills the view with bytes from the start of the peer's memory."""
        return self._move(local_buffer, remote_buffer, True, async_op, timeout)

    def close(self, *, timeout: float | None = None) -> None:
        """Waits for what goes on, then takes all registrations back. Raises TransferTimeout when
        that takes too long: then only another `close` is possible. Errors of transfers are those of
        their own waiters."""
        self._close_cuda_streams()
        deadline = time.monotonic() + self._seconds(timeout)
        self._closing = True
        for transfer in self._running():
            transfer.exception(max(0.0, deadline - time.monotonic()))
        self._end()

    async def close_async(self, *, timeout: float | None = None) -> None:
        """As `close`, without holding up the event loop while transfers go on."""
        self._close_cuda_streams()
        seconds = self._seconds(timeout)
        self._closing = True
        running = self._running()
        try:
            await wait_all([TentWork(each, seconds) for each in running], timeout=seconds)
        except Exception:
            if not all(each.done() for each in running):
                raise
        self._end()

    # ---- what they have in common ----------------------------------------------------------------

    @contextmanager
    def _open(self, timeout: float | None) -> Iterator[None]:
        """Holds the lock while the transport is open."""
        if not self._lock.acquire(timeout=self._seconds(timeout)):
            raise TimeoutError("another thread holds the transport for too long")
        try:
            if self._closing:
                raise RuntimeError("this transport is closed: make a new one")
            yield
        finally:
            self._lock.release()

    def _seconds(self, timeout: float | None) -> float:
        check_timeout(timeout)
        return self._default_timeout if timeout is None else timeout

    def _running(self) -> list[Transfer]:
        return [transfer for transfer in list(self._transfers) if not transfer.done()]

    def _release(self, registration: Registration) -> None:
        registration.segment.close()
        registration.active = False
        del self._registrations[registration.key]

    def _end(self) -> None:
        with self._lock:
            for registration in list(self._registrations.values()):
                self._release(registration)
            if self._owns and not self._closed:
                self._engine.close()
            self._closed = True

    def _check_transfer(self, local_buffer: Any, remote_buffer: Any, *, mutable: bool) -> None:
        wanted = TentMutableView if mutable else TentView
        if not isinstance(local_buffer, wanted) or local_buffer.transport is not self:
            raise TypeError(f"the local side must be a {wanted.__name__} of this transport")
        if not isinstance(remote_buffer, TentRemoteBuffer):
            raise TypeError("the remote side must be a TentRemoteBuffer, from the peer's memory")
        if self._peer is None:
            raise RuntimeError("this transport is not connected: call connect() first")
        if remote_buffer.owner != self._peer.incarnation:
            raise ValueError("the remote memory is not that of the peer of this transport")
        local_buffer.registration.check()

    def _move(
        self, local: Any, remote: Any, fills: bool, async_op: bool, timeout: float | None
    ) -> int | Work:
        seconds = self._seconds(timeout)
        with self._open(timeout):
            self._check_transfer(local, remote, mutable=fills)
            there = remote.on(self._engine)
            if local.size() > len(there):
                raise ValueError(f"{local.size()} bytes do not fit into the peer's {len(there)}")
            transfer = None
            if local.size():
                part = there if local.size() == len(there) else there[: local.size()]
                if fills:
                    transfer = self._engine.read(part, local.bytes)
                else:
                    transfer = self._engine.write(local.bytes, part)
                self._transfers[transfer] = local.registration
        if async_op:
            return TentWork(transfer, seconds)
        if transfer is not None:
            transfer.wait(seconds)
        return 0


def _resolve(future: torch.futures.Future[list[torch.Tensor]], ended: Any) -> None:
    error = ended.exception()
    if error is None:
        future.set_result([])
    else:
        future.set_exception(error)
