"""Stage: demo. One rail's cable: passes TCP connections on at a given speed, and can be broken.

Called only by the thread of `Relays` (rails.py), which owns every socket; no call blocks. A relay
stands between the two processes on one rail, whichever of them connects, so that a fault is a real
one (a reset, a connection that is slow, bytes that come late or never) and needs no root. What
always holds: the bytes of a connection are passed on in order and unchanged, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Literal

Address = tuple[str, int]
Side = Literal["near", "far"]

CHUNK_BYTES = 8 << 10
KERNEL_BYTES = 16 << 10  # Small socket buffers: a cable holds little.
BURST_S = 0.004
BACKLOG = 64
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends a reset.
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@dataclass
class Meter:
    """A token bucket: at most `bytes_per_s` on average, in bursts of a few milliseconds."""

    bytes_per_s: float
    filled_at: float = field(default_factory=time.monotonic)
    tokens: float = 0.0

    def take(self, now: float) -> int:
        """How many bytes may pass now: none, or enough to be worth a reading."""
        depth = max(self.bytes_per_s * BURST_S, self.least())
        self.tokens = min(depth, self.tokens + (now - self.filled_at) * self.bytes_per_s)
        self.filled_at = now
        return int(self.tokens) if self.tokens >= self.least() else 0

    def least(self) -> float:
        """About a millisecond's worth, so that a slow cable does not pass single bytes."""
        return min(float(CHUNK_BYTES), max(512.0, self.bytes_per_s * 0.001))

    def wait_s(self) -> float:
        """Seconds until `take` gives something again."""
        return max(0.0, (self.least() - self.tokens) / self.bytes_per_s)


@dataclass(eq=False)
class Stream:
    """One direction of one connection; `held` has been read and not yet been passed on."""

    source: socket.socket
    sink: socket.socket
    meter: Meter
    held: memoryview = field(default_factory=lambda: memoryview(b""))
    ended: bool = False
    shut: bool = False


@dataclass(eq=False)
class Door:
    """Where one end of the cable lets in those who want to reach the other end.

    A connection is passed on to `target`, as if it came from `source`; without a target it is
    reset. `there` limits what the guest sends, `back` what he gets.
    """

    listener: socket.socket
    address: Address
    source: str
    there: Meter
    back: Meter
    target: Address | None = None


class Relay:
    """The cable between the hosts `near` and `far`. `doors["far"]`, on the host `far`, is for those
    who want to reach the far end, `doors["near"]` for the others."""

    def __init__(
        self, selector: selectors.BaseSelector, near: str, far: str, bytes_per_s: float
    ) -> None:
        self._selector = selector
        self._bytes_per_s = bytes_per_s
        self._to_far, self._to_near = Meter(bytes_per_s), Meter(bytes_per_s)
        self._pairs: list[tuple[Stream, Stream]] = []
        self._silent = False
        self._interest: dict[socket.socket, int] = {}
        self.doors: dict[Side, Door] = {}
        self.moved: list[tuple[int, int]] = []  # (monotonic ns, bytes) towards the far end
        self.moved_bytes = 0
        try:
            self._open("far", far, near, self._to_far, self._to_near)
            self._open("near", near, far, self._to_near, self._to_far)
        except OSError:
            self.close()
            raise
        self._listen()

    def _open(self, side: Side, host: str, source: str, there: Meter, back: Meter) -> None:
        sock = self._bind((host, 0))
        self.doors[side] = Door(sock, sock.getsockname()[:2], source, there, back)

    def pump(self, now: float) -> float:
        """Passes on what may pass now. Returns the seconds after which it should be called again
        although no socket is ready."""
        if self._silent:
            return float("inf")
        for door in self.doors.values():
            self._accept(door)
        waits = [float("inf")]
        for pair in list(self._pairs):
            try:
                waits += [self._advance(stream, now) for stream in pair]
                if pair[0].shut and pair[1].shut:
                    self._close_pair(pair, reset=False)
                else:
                    self._watch(pair, now)
            except OSError:  # One end has gone: so has the connection.
                self._close_pair(pair, reset=True)
        return min(waits)

    def cut(self) -> None:
        """Resets every connection and refuses new ones; the addresses stay taken."""
        for pair in list(self._pairs):
            self._close_pair(pair, reset=True)
        for door in self.doors.values():
            self._want(door.listener, 0)
            door.listener.close()
            door.listener = self._bind(door.address)

    def silence(self) -> None:
        """Passes nothing on any more; whoever connects now is not refused and hears nothing."""
        self._silent = True
        for sock in list(self._interest):
            self._want(sock, 0)

    def pace(self, factor: float) -> None:
        """From now on passes on at the cable's speed divided by `factor`."""
        self._to_far.bytes_per_s = self._to_near.bytes_per_s = self._bytes_per_s / factor

    def heal(self) -> None:
        """As at the beginning. What a silence held back comes out now: late."""
        self._silent = False
        self.pace(1)
        self._listen()

    def close(self) -> None:
        """Closes every socket."""
        for pair in list(self._pairs):
            self._close_pair(pair, reset=True)
        for door in self.doors.values():
            self._want(door.listener, 0)
            door.listener.close()

    def _bind(self, address: Address) -> socket.socket:
        """A bound socket; until it listens, the kernel refuses connections to it."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
            sock.setblocking(False)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        return sock

    def _listen(self) -> None:
        for door in self.doors.values():
            door.listener.listen(BACKLOG)
            self._want(door.listener, READ)

    def _accept(self, door: Door) -> None:
        while True:
            try:
                guest, _ = door.listener.accept()
            except OSError:  # Nobody waits, or it does not listen, or he has gone again.
                return
            host = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            for sock in (guest, host):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
            pair = (Stream(guest, host, door.there), Stream(host, guest, door.back))
            self._pairs.append(pair)
            host.bind((door.source, 0))
            way = host.connect_ex(door.target) if door.target else errno.ECONNREFUSED
            if way not in (0, errno.EINPROGRESS):
                self._close_pair(pair, reset=True)

    def _advance(self, stream: Stream, now: float) -> float:
        """Writes what is held, then reads once. Returns the seconds until the meter allows more,
        infinity when it is a socket that has to be waited for."""
        self._flush(stream)
        if stream.held or stream.ended:
            return float("inf")
        room = stream.meter.take(now)
        if not room:
            return stream.meter.wait_s()
        try:
            found = stream.source.recv(min(room, CHUNK_BYTES))
        except BlockingIOError:
            return float("inf")
        stream.meter.tokens -= len(found)
        stream.ended = not found
        stream.held = memoryview(found)
        self._flush(stream)
        return 0.0

    def _flush(self, stream: Stream) -> None:
        if stream.held:
            try:
                sent = stream.sink.send(stream.held)
            except BlockingIOError:
                return
            stream.held = stream.held[sent:]
            if stream.meter is self._to_far:
                self.moved.append((time.monotonic_ns(), sent))
                self.moved_bytes += sent
        if stream.ended and not stream.held and not stream.shut:
            stream.sink.shutdown(socket.SHUT_WR)
            stream.shut = True

    def _watch(self, pair: tuple[Stream, Stream], now: float) -> None:
        """A socket is waited for where it alone is what a stream lacks."""
        wanted = {pair[0].source: 0, pair[0].sink: 0}
        for stream in pair:
            if stream.held:
                wanted[stream.sink] |= WRITE
            elif not stream.ended and stream.meter.take(now):
                wanted[stream.source] |= READ
        for sock, events in wanted.items():
            self._want(sock, events)

    def _want(self, sock: socket.socket, events: int) -> None:
        before = self._interest.pop(sock, 0)
        if events:
            self._interest[sock] = events
        if before == events:
            return
        if not before:
            self._selector.register(sock, events)
        elif events:
            self._selector.modify(sock, events)
        else:
            self._selector.unregister(sock)

    def _close_pair(self, pair: tuple[Stream, Stream], reset: bool) -> None:
        self._pairs.remove(pair)
        for sock in (pair[0].source, pair[0].sink):
            self._want(sock, 0)
            if reset:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
