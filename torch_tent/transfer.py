"""Stage: api. One thing that was asked for, as a future: completed once, by whoever sees it end.

Made by the verbs; any thread may use it. A waiting caller settles it itself; otherwise the engine's
notifier thread does. What always holds: while a transfer goes on, `Flights` keeps it, and it keeps
the tensors that it reads or fills; whoever takes it out of there completes the future.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from . import _engine, errors

if TYPE_CHECKING:
    from .card import Card

logger = logging.getLogger("torch_tent")

_NO_DEVICES: list[torch.device] = []
# Together what Future() does, without its detour over the metaclass.
_new = torch.futures.Future.__new__
_begin = torch._C.Future.__init__
_complete = torch._C.Future.set_result


class Directory(Protocol):
    """Who the engine's peers are; the control plane knows."""

    def card_of(self, peer: int) -> Card | None:
        """The card of a peer."""

    def why_not_faster(self, peer: int) -> str:
        """Which faster rails are not used with a peer, and why; "" when none is."""


class Flights:
    """The transfers of one engine that go on: keeps each alive until it has ended."""

    __slots__ = ("__weakref__", "directory", "native", "running")

    def __init__(self, native: _engine.Engine, directory: Directory) -> None:
        self.native = native
        self.directory = directory
        self.running: dict[int, Transfer] = {}

    def start(
        self,
        operation: _engine.Operation,
        kept: Any,
        source: Any,
        filled: torch.Tensor | None = None,
        rank_of: Callable[[int], int | None] | None = None,
        watched: bool = False,
    ) -> Transfer:
        """The future of an operation. `kept` lives until its end; `source` is who sends, None while
        unknown; then `rank_of` finds it from the engine's peer id. `watched`: the engine knows
        already that its end is to be told."""
        transfer = _new(Transfer)
        _begin(transfer, _NO_DEVICES)
        transfer._operation = operation
        transfer._flights = self
        transfer._kept = kept
        transfer._source = source
        transfer._filled = filled
        if rank_of is not None:
            transfer._rank_of = rank_of
        number = transfer._number = operation.id
        self.running[number] = transfer
        if not watched or operation.done():  # What ended before it was known here is told again.
            self.native.watch(operation, False)
        return transfer

    def name_of(self, peer: int | None) -> str:
        """What people call a peer; "" for none."""
        if peer is None:
            return ""
        card = self.directory.card_of(peer)
        return f"peer {peer}" if card is None else card.name

    def path(self, peer: int | None, rails: Iterable[str]) -> str:
        """Which way was taken, and why no faster one."""
        taken = ", ".join(rails)
        why = "" if peer is None else self.directory.why_not_faster(peer)
        return f"{taken} ({why})" if taken and why else taken or why

    def settle(self) -> None:
        """Completes all that have ended; the engine was closed, which ends every transfer."""
        self.ended([number for number, t in list(self.running.items()) if t._operation.done()])

    def ended(self, ids: list[int]) -> None:
        """The engine's notifier says that these have ended."""
        for number in ids:
            transfer = self.running.get(number)
            if transfer is None:
                continue
            try:
                transfer._settle()
            except Exception:
                logger.exception("a callback of transfer %d raised", number)


class Transfer(torch.futures.Future["torch.Tensor | None"]):
    """A transfer: a `torch.futures.Future` that can also be awaited, and completes by itself.

    Its value is the tensor that was filled (recv, read), else None. It fails with TransferError,
    PeerLostError, AccessError, TransferTimeout or TransferCancelled. Once it has ended, with
    success or not, nothing reads or writes its memory any more.
    """

    _operation: _engine.Operation
    _number: int
    _flights: Flights
    _kept: Any
    _rank_of: Callable[[int], int | None] | None = None
    _filled: torch.Tensor | None = None
    _source: Any = None
    _error: errors.TransferError | None = None
    _ended: bool = False

    def __init__(self) -> None:
        raise TypeError("a Transfer is made by send, recv, write, read, write_blocks, read_blocks")

    def wait(self, timeout: float | None = None) -> torch.Tensor | None:
        """Waits until the transfer has ended; returns the tensor that was filled, or None.

        The GIL is released meanwhile. Raises the transfer's error, or TransferTimeout when
        `timeout` seconds pass first: then the transfer goes on, and its memory must not be reused
        yet.
        """
        if not self._ended:
            if not self._operation.wait(timeout):
                raise self._still_running(timeout)
            self._settle()
        if self._error is not None:
            raise self._error
        return self._filled

    def done(self) -> bool:
        """Whether the transfer has ended, with success or not. Never waits."""
        if not self._ended and self._operation.done():
            self._settle()
        return self._ended

    def value(self) -> torch.Tensor | None:
        """As `wait` for a transfer that has ended; raises RuntimeError for one that has not."""
        if not self.done():
            raise RuntimeError("the transfer has not ended: wait() for it first")
        return self.wait()

    def exception(self, timeout: float | None = None) -> errors.TransferError | None:
        """Waits as `wait` does; returns the transfer's error instead of raising it, None if it
        succeeded. Raises TransferTimeout when `timeout` seconds pass first."""
        try:
            self.wait(timeout)
        except errors.TransferError as error:
            if not self._ended:
                raise error
        return self._error

    def cancel(self) -> bool:
        """Stops the transfer; on return its memory is free to be reused, at both ends.

        Returns whether the transfer ended because of it; False when it had ended before. Takes as
        long as the peer needs to agree, `Settings.peer_timeout_s` at most.
        """
        if not self._ended:
            self._operation.cancel()
            self._operation.wait(None)
            self._settle()
        return isinstance(self._error, errors.TransferCancelled)

    def then(self, callback: Callable[..., Any]) -> torch.futures.Future[Any]:
        """A future of `callback(transfer)`, called when the transfer has ended, on the engine's
        notifier thread, or at once. As torch.futures.Future.then."""
        self._hurry()
        return super().then(callback)

    def add_done_callback(self, callback: Callable[..., Any]) -> None:
        """Calls `callback(transfer)` when the transfer has ended: on the engine's notifier thread,
        or at once. It must not wait long."""
        self._hurry()
        super().add_done_callback(callback)

    def report(self) -> dict[str, Any]:
        """What became of the transfer. Raises RuntimeError as long as it goes on.

        `bytes`, `seconds`, `rails` (bytes by rail), `slices` (number by rail), `retries` (slices
        sent again), `fences`, `path` (why this path and not a faster one), `peer` (its name).
        """
        if not self.done():
            raise RuntimeError("the transfer has not ended: wait() for it before its report")
        found = self._operation.report()
        shares = found["rails"]
        found["rails"] = {rail: share[0] for rail, share in shares.items()}
        found["slices"] = {rail: share[1] for rail, share in shares.items()}
        found["path"] = found["path"] or self._flights.path(found["peer"], shares)
        found["peer"] = self._flights.name_of(found["peer"])
        return found

    @property
    def source(self) -> Any:
        """Who sends the bytes: a rank of the group for send and recv, a peer's name for read and
        write. None while a recv from any source waits for its match."""
        if self._source is None and self._rank_of is not None and self.done():
            peer = self._operation.report()["peer"]
            self._source = None if peer is None else self._rank_of(peer)
        return self._source

    def __await__(self) -> Generator[Any, None, torch.Tensor | None]:
        """Waits inside an asyncio loop, without a thread. When the waiting is cancelled, the
        transfer goes on: `cancel()` stops it."""
        if not self.done():
            loop = asyncio.get_running_loop()
            ready: asyncio.Future[None] = loop.create_future()
            self.add_done_callback(lambda _: _wake(loop, ready))
            yield from ready
        return self.wait()

    def _hurry(self) -> None:
        """Someone wants to hear of the end without waiting for it."""
        if not self._ended:
            self._flights.native.watch(self._operation, True)

    def _settle(self) -> None:
        """Takes the result over; the transfer has ended. Several threads may come here at once, so
        each step may be done twice, but for completing the future."""
        if self._operation.failed and self._error is None:
            code, text, rail = self._operation.status()
            found = self._operation.report()
            peer = self._flights.name_of(found["peer"])
            path = found["path"] or self._flights.path(found["peer"], found["rails"])
            self._error = errors.from_status(code, text, rail, peer, path)
        self._ended = True
        if self._flights.running.pop(self._number, None) is None:
            return
        self._kept = None
        if self._error is None:
            _complete(self, self._filled)
        else:
            self._filled = None
            # A copy: what is raised refers to this transfer by its traceback, which would be a
            # cycle through C++, where the garbage collector cannot see it.
            self.set_exception(copy.copy(self._error))  # type: ignore[arg-type]

    def _still_running(self, timeout: float | None) -> errors.TransferTimeout:
        return errors.TransferTimeout(
            f"the transfer has not ended after {timeout:g} s of waiting, and goes on: wait() "
            "again, or cancel() it before its memory is reused"
        )


def _wake(loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
    """Makes the awaiting coroutine go on; called by any thread."""

    def set_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        loop.call_soon_threadsafe(set_ready)
    except RuntimeError:
        logger.debug("a transfer ended after the event loop that awaited it was closed")
