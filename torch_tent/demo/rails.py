"""Stage: demo. The relays of all rails (relay.py) on one thread, and the commands that break them.

Made and commanded by the demo's parent process and by tests, from any thread; commands reach the
relays' thread through a queue. What always holds: a command is finished when its call returns;
when `close` returns, the thread has ended and every socket is closed.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from torch_tent.demo.relay import Address, Relay, Side

TICK_S_MAX = 0.25
PATIENCE_S = 5.0


class Relays:
    """One relay per rail.

    `ends` are the rails' two ends, the near one and the far one: addresses of this machine.
    `bytes_per_s` limits each rail, each direction for itself. Raises OSError when an address cannot
    be had.
    """

    def __init__(self, ends: Sequence[tuple[str, str]], bytes_per_s: float) -> None:
        self._selector = selectors.DefaultSelector()
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._error: BaseException | None = None
        self._relays: list[Relay] = []
        try:
            for near, far in ends:
                self._relays.append(Relay(self._selector, near, far, bytes_per_s))
        except OSError:
            self._shut()
            raise
        self._thread = threading.Thread(target=self._serve, name="relays", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def doors(self, side: Side) -> list[Address]:
        """Where those connect who want to reach that side, rail by rail: on the host of that side,
        so that only the port is another one."""
        return [relay.doors[side].address for relay in self._relays]

    def lead(self, side: Side, targets: Sequence[Address]) -> None:
        """Where the connections to that side are passed on to, rail by rail. Until this is said
        they are reset."""

        def act() -> None:
            for relay, target in zip(self._relays, targets, strict=True):
                relay.doors[side].target = target

        self._command(act)

    def moved(self, rail: int) -> list[tuple[int, int]]:
        """What went towards the far side so far: (monotonic ns, bytes), oldest first."""
        return list(self._relays[rail].moved)

    def total(self, rail: int) -> int:
        """How many bytes went towards the far side so far."""
        return self._relays[rail].moved_bytes

    def cut(self, rail: int) -> int:
        """Resets the rail's connections, refuses new ones. Returns the moment, monotonic ns."""
        return self._command(self._relays[rail].cut)

    def drop(self, rail: int) -> int:
        """The rail passes nothing on any more and says nothing. Returns the moment."""
        return self._command(self._relays[rail].silence)

    def slow(self, rail: int, factor: float) -> int:
        """The rail runs at its speed divided by `factor`. Returns the moment."""
        return self._command(lambda: self._relays[rail].pace(factor))

    def heal(self, rail: int) -> int:
        """Undoes all of these. Returns the moment."""
        return self._command(self._relays[rail].heal)

    def close(self) -> None:
        """Ends the thread and closes every socket. Idempotent; raises what ended the thread."""
        self._commands.put(None)
        self._knock()
        self._thread.join(PATIENCE_S)
        if self._error is not None:
            raise RuntimeError("the demo's relays failed") from self._error

    def _command(self, act: Callable[[], None]) -> int:
        """Has the relays' thread run `act`. Raises RuntimeError when that thread has ended."""
        done: queue.SimpleQueue[int] = queue.SimpleQueue()

        def run() -> None:
            act()
            done.put(time.monotonic_ns())

        self._commands.put(run)
        self._knock()
        try:
            if not self._thread.is_alive():
                raise queue.Empty
            return done.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise RuntimeError("the demo's relays do not run any more") from self._error

    def _knock(self) -> None:
        with contextlib.suppress(OSError):  # The thread has ended and closed its end.
            self._rope.send(b"!")

    # ---- the relays' thread --------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            wait_s = 0.0
            while True:
                self._selector.select(min(wait_s, TICK_S_MAX))
                with contextlib.suppress(BlockingIOError):
                    self._bell.recv(4096)
                while not self._commands.empty():
                    command = self._commands.get()
                    if command is None:
                        return
                    command()
                now = time.monotonic()
                wait_s = min([TICK_S_MAX, *(relay.pump(now) for relay in self._relays)])
        except BaseException as error:
            self._error = error  # Told to whoever commands or closes next.
        finally:
            self._shut()

    def _shut(self) -> None:
        for relay in self._relays:
            relay.close()
        self._selector.close()
        self._bell.close()
        self._rope.close()
