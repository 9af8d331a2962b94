"""Stage: tests. Those who should not get in: raw connections, relays, and insiders who lie.

Used by the tests of the handshake, on their own thread. What always holds: every wait ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from torch_tent import envelope
from torch_tent.card import Card
from torch_tent.conversation import Conversation, Hello, Stopped, Welcome
from torch_tent.handshake import greet
from torch_tent.settings import Settings

SECRET = Settings(secret=b"one", rails=("127.0.0.1",))
Change = Callable[[bytes], bytes]


def connect(card: Card, local: bool = False) -> socket.socket:
    """A raw connection to an engine."""
    if local:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"\0{card.local_name}")
    else:
        address = card.addresses[0]
        sock = socket.create_connection((address.host, address.port))
    sock.settimeout(10.0)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side hangs up."""
    data = b""
    while True:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


def speak(sock: socket.socket, data: bytes) -> bytes:
    """Says something and hangs up; returns what was answered, if anybody listened."""
    with contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    return read_all(sock)


def read_message(sock: socket.socket) -> bytes:
    """One whole message, or what came before the end."""
    data = read_exactly(sock, envelope.HEADER_BYTES)
    if len(data) < envelope.HEADER_BYTES:
        return data
    return data + read_exactly(sock, int.from_bytes(data[8:12], "little"))


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def greeting(card: Card, listener: Card, **changes: Any) -> Hello:
    """What an honest dialer would say."""
    hello = Hello(
        card=card,
        expected=listener.incarnation,
        nonce=secrets.token_bytes(32),
        link=secrets.randbits(63) + 1,
        kind="tcp",
        source="127.0.0.1",
        target="127.0.0.1",
        replaces=0,
        insist=False,
        session=secrets.token_bytes(8),
        peer_session=b"",
    )
    return msgspec.structs.replace(hello, **changes)


def call(sock: socket.socket, hello: Hello, secret: bytes | None = None) -> Welcome | Stopped:
    """Shakes hands as a dialer, up to the welcome."""

    async def run() -> Welcome | Stopped:
        sock.setblocking(False)
        try:
            return await greet(Conversation(sock, secret, 5.0), hello)
        except Stopped as stop:
            return stop

    return asyncio.run(run())


def insiders(party: Any) -> Iterator[Any]:
    """The fixture `insider`: calls an engine with any greeting, knowing the secret."""
    a, b = party(SECRET), party(SECRET)
    sockets: list[socket.socket] = []

    def calls(local: bool = False, secret: bytes = b"one", **changes: Any) -> Any:
        sockets.append(connect(b.card(), local))
        if local:
            changes = {"kind": "shm", "source": "", "target": ""} | changes
        return call(sockets[-1], greeting(a.card(), b.card(), **changes), secret)

    calls.engine, calls.sockets, calls.dialer = b.engine, sockets, a  # type: ignore[attr-defined]
    yield calls
    for sock in sockets:
        sock.close()


class Relay:
    """Stands between a dialer and an engine: keeps every message, and may change it on the way."""

    def __init__(self, target: Card, change: Change = lambda data: data) -> None:
        self._target = target
        self._change = change
        self._door = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._sockets: list[socket.socket] = []
        self.from_dialer: list[bytes] = []
        self._threads[0].start()

    def card(self) -> Card:
        """The engine's card, but it leads here."""
        port = self._door.getsockname()[1]
        address = msgspec.structs.replace(self._target.addresses[0], port=port)
        return msgspec.structs.replace(self._target, addresses=(address,))

    def close(self) -> None:
        for sock in [self._door, *self._sockets]:
            hang_up(sock)
        for thread in self._threads:
            thread.join(10.0)

    def _serve(self) -> None:
        while True:
            try:
                dialer, _ = self._door.accept()
            except OSError:
                return
            engine = connect(self._target)
            engine.settimeout(None)
            self._sockets += [dialer, engine]
            for source, sink, change in ((dialer, engine, self._change), (engine, dialer, None)):
                pump = threading.Thread(target=self._pump, args=(source, sink, change), daemon=True)
                self._threads.append(pump)
                pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket, change: Change | None) -> None:
        with contextlib.suppress(OSError):
            while message := read_message(source):
                if change is not None:
                    self.from_dialer.append(message)
                    message = change(message)
                sink.sendall(message)
        hang_up(source)
        hang_up(sink)


def hang_up(sock: socket.socket) -> None:
    """Closes a socket so that a thread which waits for it wakes up."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
