"""Stage: tests. An engine that moves no bytes: it keeps links and notices their ends.

Used by the tests of the control plane from any thread; `next_events` runs on the control plane's
events thread. What always holds: `close` closes every descriptor that it was given.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PROBE_VALUE = 0x1122334455667788


@dataclass
class FakeLink:
    """A link that the engine holds."""

    peer: int
    link: int
    kind: str
    rail: str
    fds: tuple[int, ...]
    dialed: bool
    pid: int
    rate_hint: float


class FakeEngine:
    """Stands in for `_engine.Engine` where only peers and links matter."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._wake_read, self._wake = os.pipe()
        self._events: list[tuple[str, int, int, str, str]] = []
        self._closed = False
        self.links: dict[int, FakeLink] = {}
        self.history: list[FakeLink] = []
        self.names: list[str] = []
        self.lost: dict[int, str] = {}
        self.closed_links: dict[int, str] = {}
        self.unreachable: dict[int, str] = {}

    # ---- the engine's side of the seam -----------------------------------------------------------

    def add_peer(self, name: str) -> int:
        with self._lock:
            self.names.append(name)
            return len(self.names)

    def lose_peer(self, peer: int, reason: str) -> None:
        with self._lock:
            if peer in self.lost:
                return
            self.lost[peer] = reason
            for link in [link for link in self.links.values() if link.peer == peer]:
                self._drop(link)
            self._tell(("lost", peer, 0, "", reason))

    def closed(self, peer: int) -> bool:
        return False

    def alive(self, peer: int) -> bool:
        with self._lock:
            return peer not in self.lost

    def add_link(
        self,
        peer: int,
        link: int,
        kind: str,
        rail: str,
        fds: Sequence[int],
        dialed: bool,
        pid: int,
        rate_hint: float,
    ) -> None:
        with self._lock:
            made = FakeLink(peer, link, kind, rail, tuple(fds), dialed, pid, rate_hint)
            if self._closed or peer in self.lost or link in self.links:
                close_all(made.fds)
                raise RuntimeError("no link for this peer")
            self.links[link] = made
            self.history.append(made)
            self._tell(None)

    def close_link(self, link: int, reason: str) -> None:
        with self._lock:
            if link in self.links:
                self.closed_links[link] = reason
                self._go_down(self.links[link], reason)

    def no_rails(self, peer: int, rails: int, reason: str) -> None:
        with self._lock:
            self.unreachable[peer] = reason
            self._tell(None)

    def next_events(self, timeout: float | None) -> list[tuple[str, int, int, str, str]]:
        deadline = time.monotonic() + (3600.0 if timeout is None else timeout)
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the engine is closed")
                if self._events:
                    taken, self._events = self._events, []
                    return taken
                sockets = {link.fds[-1]: link for link in self.links.values()}
            left = max(0.0, deadline - time.monotonic())
            try:
                ready, _, _ = select.select([self._wake_read, *sockets], [], [], left)
            except OSError:
                continue  # A link was closed meanwhile.
            if not ready:
                return []
            with self._lock:
                self._look_at(ready, sockets)

    def probe_word(self) -> tuple[int, int]:
        return id(self), PROBE_VALUE

    # ---- the test's side -------------------------------------------------------------------------

    def dial(self, peer: int, mask: int = 0xFF) -> None:
        """Asks the control plane for rails."""
        with self._lock:
            self._tell(("dial", peer, mask, "", ""))

    def cut(self, link: int) -> None:
        """The link dies by itself; the other side notices."""
        with self._lock:
            self._go_down(self.links[link], "cut by the test")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for link in list(self.links.values()):
                self._drop(link)
            self._tell(None)

    def let_go(self) -> None:
        """The last descriptors, once nobody waits for events any more."""
        close_all([self._wake_read, self._wake])

    def wait_for(self, condition: Callable[[FakeEngine], bool], timeout: float = 10.0) -> None:
        """Returns when the condition holds; fails the test when it does not in time."""
        with self._lock:
            held = self._lock.wait_for(lambda: condition(self), timeout)
            state = f"links {list(self.links.values())}, lost {self.lost}"
        assert held, state

    def rails(self) -> list[str]:
        """The names of the rails that are up."""
        with self._lock:
            return sorted(link.rail for link in self.links.values())

    # ---- under the lock --------------------------------------------------------------------------

    def _tell(self, event: tuple[str, int, int, str, str] | None) -> None:
        if event is not None:
            self._events.append(event)
        os.write(self._wake, b"x")
        self._lock.notify_all()

    def _drop(self, link: FakeLink) -> None:
        del self.links[link.link]
        sock = socket.socket(fileno=os.dup(link.fds[-1]))
        with sock, contextlib.suppress(OSError):  # The other side was faster.
            sock.shutdown(socket.SHUT_RDWR)
        close_all(link.fds)

    def _go_down(self, link: FakeLink, reason: str) -> None:
        self._drop(link)
        self._tell(("down", link.peer, link.link, link.rail, reason))

    def _look_at(self, ready: list[int], sockets: dict[int, FakeLink]) -> None:
        for fd in ready:
            if fd == self._wake_read:
                os.read(fd, 4096)
                continue
            link = sockets[fd]
            if self.links.get(link.link) is not link:
                continue
            with socket.socket(fileno=os.dup(fd)) as sock:
                try:
                    ended = not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                except BlockingIOError:
                    ended = False
                except OSError:
                    ended = True
            if ended:
                self._go_down(link, "the other side closed it")


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


class FakeNative:
    """The functions of `_engine` for one host. `refusal` is what a CMA probe says."""

    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal
        self.probed: list[tuple[int, int, int]] = []

    def open_local_channel(self) -> tuple[list[int], list[int]]:
        fd = os.memfd_create("channel")
        return [fd], [os.dup(fd)]

    def probe_cma(self, pid: int, address: int, value: int) -> str:
        self.probed.append((pid, address, value))
        return self.refusal
