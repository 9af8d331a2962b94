"""Stage: control. The doors of one engine: sockets on every rail end, and a Unix socket.

Sockets are opened by whoever makes the engine, so that errors surface there; the rest runs on the
control thread. What always holds: at most HALF_OPEN_MAX connections are unproven at a time, each
for a bounded time, and a malformed or unproven one disturbs nobody else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from . import rdma_meeting
from .card import ADDRESSES_MAX, Address
from .conversation import Attach, Conversation, Hello, Ready, Stopped, Verdict, Welcome, close_fds
from .errors import SettingsError
from .handshake import answer, stranger, unix_peer
from .rail_ends import RailEnd
from .site import UNIX_KINDS, NewLink, Site, rail_name

HALF_OPEN_MAX = 64
BACKLOG = 256
CHANNEL_FDS = 1  # csrc/transports/local_channel.h
OUT_OF_FDS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger("torch_tent")

# Decides about a dialer that has proved itself, given its greeting and its process id (0: unknown).
# Returns the welcome; raises Stopped.
Judge = Callable[[Hello, int], Welcome]


def open_tcp(ends: tuple[RailEnd, ...], port: int) -> tuple[list[socket.socket], list[Address]]:
    """Listens on every address of the ends. Raises SettingsError where that is not possible."""
    sockets: list[socket.socket] = []
    addresses: list[Address] = []
    try:
        for number, end in enumerate(ends):
            for local in end.addresses:
                if len(addresses) == ADDRESSES_MAX:
                    log.warning("more than %d addresses: the rest is not used", ADDRESSES_MAX)
                    return sockets, addresses
                sock = _listen(local.host, port, local.scope)
                sockets.append(sock)
                facts = (end.interface, local.prefix, end.speed_mbit, number)
                addresses.append(Address(local.host, sock.getsockname()[1], *facts))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets, addresses


def _listen(host: str, port: int, scope: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port, 0, scope) if family == socket.AF_INET6 else (host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"listen_port (TENT_LISTEN_PORT) = {port} is in use on {host} by another socket: "
                "choose another one, or 0 for any free port"
            ) from None
        if error.errno == errno.EACCES:
            raise SettingsError(
                f"listen_port (TENT_LISTEN_PORT) = {port} is not allowed for this user: choose one "
                "above 1023, or 0 for any free port"
            ) from None
        raise SettingsError(
            f"cannot listen on {host}: {error.strerror}; leave it out of TENT_RAILS"
        ) from None
    return sock


def open_unix(name: str) -> socket.socket:
    """Listens on an abstract Unix socket; its name ends with the process."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(f"\0{name}")
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """Answers whoever connects. Control thread only."""

    def __init__(
        self,
        site: Site,
        sockets: list[socket.socket],
        judge: Judge,
        arrived: Callable[[Hello, NewLink], None],
        failed: Callable[[Hello | None, str, Stopped], None],
    ) -> None:
        self._site = site
        self._sockets = sockets
        self._judge = judge
        self._arrived = arrived  # takes the descriptors over
        self._failed = failed  # whose greeting (None: unproven), from where, why
        self._half_open: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Begins to accept."""
        for door in self._sockets:
            self._open(door)

    async def stop(self) -> None:
        """Hangs up on everybody whose handshake still runs, and listens no more."""
        for door in self._sockets:
            self._loop.remove_reader(door)
            door.close()
        running = list(self._half_open)
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _open(self, door: socket.socket) -> None:
        if door.fileno() >= 0:
            self._loop.add_reader(door, self._accept, door)

    def _accept(self, door: socket.socket) -> None:
        try:
            sock, _ = door.accept()
        except BlockingIOError:
            return  # It has hung up already.
        except OSError as error:
            if error.errno in OUT_OF_FDS:
                # The connection stays in the queue: without a pause this would spin.
                log.warning("cannot accept connections: %s", error.strerror)
                self._loop.remove_reader(door)
                self._loop.call_later(0.1, self._open, door)
            return
        sock.setblocking(False)
        if len(self._half_open) >= HALF_OPEN_MAX:
            # An honest handshake takes a millisecond: the oldest is the least likely one.
            self._half_open.pop(0).cancel()
        meeting = self._loop.create_task(self._meet(sock))
        self._half_open.append(meeting)
        meeting.add_done_callback(lambda ended: self._met(ended, sock))

    def _met(self, meeting: asyncio.Task[None], sock: socket.socket) -> None:
        sock.close()  # A meeting that was cancelled before it began has not done it.
        if meeting in self._half_open:
            self._half_open.remove(meeting)
        if not meeting.cancelled() and meeting.exception() is not None:
            log.error("a handshake failed unexpectedly", exc_info=meeting.exception())

    async def _meet(self, sock: socket.socket) -> None:
        proven: list[Hello] = []
        where = "a Unix socket"
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                where = str(sock.getpeername()[0])
            async with asyncio.timeout(4 * self._site.step_timeout_s):
                link = await self._shake(sock, proven)
            self._arrived(proven[0], link)
        except Stopped as stop:
            self._failed(proven[0] if proven else None, where, stop)
        except OSError as error:
            why = error.strerror or "the time for the handshake passed"
            self._failed(proven[0] if proven else None, where, Stopped(Verdict.SILENT, why))
        except asyncio.CancelledError:
            why = "the handshake was given up"
            self._failed(proven[0] if proven else None, where, Stopped(Verdict.SILENT, why))
            raise
        finally:
            sock.close()

    async def _shake(self, sock: socket.socket, proven: list[Hello]) -> NewLink:
        local = sock.family == socket.AF_UNIX
        secret = self._site.settings.secret
        talk = Conversation(sock, secret, self._site.step_timeout_s)
        why = stranger(sock, dialed=False) if secret is None else ""
        if why:
            raise await talk.refuse(Verdict.DENIED, why)
        pid = unix_peer(sock)[0] if local else 0

        async def judge(hello: Hello) -> Welcome:
            if hello.kind != "rdma" and (hello.kind in UNIX_KINDS) != local:
                raise Stopped(Verdict.UNFIT, f"{hello.kind} does not come over this socket")
            welcome = self._judge(hello, pid)
            proven.append(hello)
            if hello.kind == "rdma":  # The dialer's first packet may come right behind the welcome.
                await rdma_meeting.join(self._site, hello.link, hello.endpoint, False)
            return welcome

        try:
            hello, welcome = await answer(talk, self._site.card.incarnation, judge)
        except BaseException:
            if proven and proven[0].kind == "rdma":
                rdma_meeting.drop(self._site, proven[0].link)
            raise
        if welcome.unfit:
            raise Stopped(Verdict.UNFIT, welcome.unfit)
        name = rail_name(hello.kind, hello.target, hello.source)
        if hello.kind == "rdma":
            await self._meet_rdma(talk, hello.link, name)
            return NewLink(hello.link, "rdma", name, (sock.detach(),), False, 0, hello.session)
        fds: list[int] = []
        if local:
            fds = await self._channel(talk)
        fds.append(sock.detach())
        return NewLink(hello.link, hello.kind, name, tuple(fds), False, pid, hello.session)

    async def _meet_rdma(self, talk: Conversation, link: int, name: str) -> None:
        """Our end was made by the judge; it is a link when bytes have crossed both ways."""
        try:
            await rdma_meeting.greeted(self._site, link, name)
            await talk.receive(Ready)
            await talk.send(Ready())
        except BaseException:
            rdma_meeting.drop(self._site, link)
            raise

    async def _channel(self, talk: Conversation) -> list[int]:
        """The descriptors that the dialer passes."""
        _, fds = await talk.receive_fds(Attach)
        try:
            if len(fds) != CHANNEL_FDS:
                raise Stopped(Verdict.SILENT, f"{len(fds)} descriptors came, not {CHANNEL_FDS}")
            await talk.send(Ready())
        except BaseException:
            close_fds(fds)
            raise
        return fds
