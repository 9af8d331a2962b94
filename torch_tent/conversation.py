"""Stage: control. The messages of a handshake, and one connection while they are exchanged.

Runs on the control thread. What always holds: no message is longer than MESSAGE_BYTES_MAX, no wait
is endless, and not one byte behind the last message is read: it belongs to the data plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import hmac
import os
import socket
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from . import envelope
from .card import Card
from .errors import TicketError

MESSAGE_BYTES_MAX = 4096
MSG_CMSG_CLOEXEC = 0x40000000  # <bits/socket.h>; Python has no name for it
FDS_MAX = 8


class Verdict(enum.Enum):
    """Why a handshake did not end in a link."""

    GONE = "gone"  # The process is not there any more.
    DENIED = "denied"  # It is there and does not want us: secret, user, version.
    SILENT = "silent"  # No answer, or one that broke off.
    NO_ROUTE = "no route"  # The way there cannot even be tried.
    NO_END = "no end"  # Our own end of it cannot be made.
    GLARE = "glare"  # Both dial this rail at once, and the other side's connection counts.
    LOST = "lost"  # It has given us up.
    UNFIT = "unfit"  # This kind of rail does not work between us.


class Stopped(Exception):
    """A handshake ended without a link."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The dialer: who I am, whom I expect, and what this connection is to be."""

    card: Card
    expected: bytes  # the listener's incarnation
    nonce: bytes
    link: int
    kind: str
    source: str  # the dialer's address or RDMA port, "" on one host
    target: str
    replaces: int  # the link that this rail had before, as far as the dialer knows; 0: none
    insist: bool  # its turn was waited for and did not come
    session: bytes
    peer_session: bytes  # the listener's session that this one belongs to; empty: none yet
    endpoint: bytes = b""  # "rdma": the dialer's end of the link, for the device


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The listener: who I am; prove that you know the secret."""

    nonce: bytes
    incarnation: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The dialer knows the secret."""

    mac: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The listener knows it too, and takes the link."""

    mac: bytes
    session: bytes
    unfit: str  # why the listener cannot use this kind of rail, "" when it can
    endpoint: bytes = b""  # "rdma": the listener's end


class Attach(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The dialer passes the channel's descriptors."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The listener has the descriptors; or, of "rdma": bytes have crossed both ways."""


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """No link. `verdict` is the value of a Verdict."""

    verdict: str
    text: str


Step = Hello | Challenge | Proof | Welcome | Attach | Ready | Refusal
S = TypeVar("S", Hello, Challenge, Proof, Welcome, Attach, Ready)
_decoder: msgspec.msgpack.Decoder[Step] = msgspec.msgpack.Decoder(Step)


class Conversation:
    """One connection while its handshake runs. Does not own the socket."""

    def __init__(self, sock: socket.socket, secret: bytes | None, step_timeout_s: float) -> None:
        self.sock = sock
        self._key = secret or b""
        self._step_timeout_s = step_timeout_s
        self._said = hashlib.sha256()
        self._loop = asyncio.get_running_loop()

    def said(self) -> bytes:
        """The digest of every byte of the handshake so far, the same on both sides."""
        return self._said.digest()

    def mac(self, role: bytes, said: bytes, more: bytes = b"") -> bytes:
        """What proves that `role` knows the secret and has said and heard the same."""
        return hmac.digest(self._key, role + b"\0" + said + more, "sha256")

    async def send(self, step: Step, fds: Sequence[int] = ()) -> None:
        """Sends one message, with descriptors where given. Raises Stopped."""
        data = envelope.wrap(b"H", step)
        self._said.update(data)
        try:
            async with asyncio.timeout(self._step_timeout_s):
                if fds:  # A message or two on an empty socket: it takes the first bytes at once.
                    data = data[socket.send_fds(self.sock, [data], list(fds)) :]
                await self._loop.sock_sendall(self.sock, data)
        except OSError as error:
            raise Stopped(Verdict.SILENT, f"the connection broke: {words(error)}") from None

    async def refuse(self, verdict: Verdict, text: str) -> Stopped:
        """Tells the other side why not, as far as it listens; returns what to raise."""
        with contextlib.suppress(Stopped):
            await self.send(Refusal(verdict.value, text[:500]))
        return Stopped(verdict, text)

    async def receive(self, kind: type[S]) -> S:
        """The next message, which must be of this kind. Raises Stopped."""
        return self._expect(await self._read(None), kind)

    async def receive_fds(self, kind: type[S]) -> tuple[S, list[int]]:
        """The next message and the descriptors that came with it, the caller's to close."""
        fds: list[int] = []
        try:
            return self._expect(await self._read(fds), kind), fds
        except BaseException:
            close_fds(fds)
            raise

    async def _read(self, fds: list[int] | None) -> Step:
        try:
            async with asyncio.timeout(self._step_timeout_s):
                header = await self._exactly(envelope.HEADER_BYTES, fds)
                length = envelope.body_bytes(b"H", header)
                if length > MESSAGE_BYTES_MAX:
                    raise Stopped(Verdict.SILENT, f"a handshake message of {length} bytes came")
                data = header + await self._exactly(length, None)
            step = envelope.unwrap(b"H", data, _decoder)
        except envelope.VersionError as error:
            raise Stopped(Verdict.DENIED, str(error)) from None
        except envelope.ForeignError as error:
            raise Stopped(Verdict.GONE, f"something else answers there: {error}") from None
        except TicketError as error:
            raise Stopped(Verdict.SILENT, str(error)) from None
        except OSError as error:
            raise Stopped(Verdict.SILENT, f"the handshake broke off: {words(error)}") from None
        self._said.update(data)
        return step

    async def _exactly(self, count: int, fds: list[int] | None) -> bytes:
        data = b""
        while len(data) < count:
            if fds is not None and not data:
                await self._readable()
                data, got, _, _ = socket.recv_fds(self.sock, count, FDS_MAX, MSG_CMSG_CLOEXEC)
                fds += got
                more = data
            else:
                more = await self._loop.sock_recv(self.sock, count - len(data))
                data += more
            if not more:
                raise ConnectionResetError("the other side hung up")
        return data

    async def _readable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(self.sock, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(self.sock)

    def _expect(self, step: Step, kind: type[S]) -> S:
        if isinstance(step, Refusal):
            known = step.verdict in {verdict.value for verdict in Verdict}
            raise Stopped(Verdict(step.verdict) if known else Verdict.DENIED, step.text[:500])
        if not isinstance(step, kind):
            got, wanted = type(step).__name__, kind.__name__
            raise Stopped(Verdict.SILENT, f"{got} came out of turn, where {wanted} is due")
        return step


def words(error: OSError) -> str:
    """What went wrong, without the number that Python puts before it."""
    return error.strerror or str(error) or "the time for an answer passed"


def close_fds(fds: Sequence[int]) -> None:
    """Closes descriptors that nobody wants."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
