"""Stage: control. One try to connect a rail: connect, shake hands, prepare the descriptors.

Called by the switchboard on the control thread; changes no state but its own socket. What always
holds: it ends within a bounded time, with a NewLink whose descriptors are the caller's, or with
Stopped and nothing left open.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
from collections.abc import Awaitable

from . import rdma_meeting
from .contact import Contact, RailState
from .conversation import Attach, Conversation, Hello, Ready, Stopped, Verdict, close_fds, words
from .handshake import NONCE_BYTES, greet, stranger, unix_peer, vanished
from .pairing import Way
from .site import NewLink, Site, rail_name

IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; Python has no name for it
NO_ROUTE = {
    errno.ENETUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EINVAL,
    errno.EACCES,
    errno.EPERM,
    errno.EAFNOSUPPORT,
    errno.ENODEV,
}


async def dial(site: Site, contact: Contact, state: RailState) -> NewLink:
    """Tries the ways of a rail, best first, until one gives a link.

    Raises Stopped with the verdict that leaves the most hope.
    """
    if not state.rail.ways and state.rail.kind != "rdma":
        return await _once(_dial_unix(site, contact, state))
    stops = []
    for way in state.rail.ways or (None,):
        try:
            if way is None or state.rail.kind == "rdma":
                return await _once(_dial_rdma(site, contact, state, way))
            return await _once(_dial_tcp(site, contact, state, way))
        except Stopped as stop:
            stops.append(stop)
            if stop.verdict in (Verdict.GLARE, Verdict.LOST, Verdict.DENIED):
                break
    order = [Verdict.LOST, Verdict.GLARE, Verdict.SILENT, Verdict.DENIED, Verdict.GONE]
    order += [Verdict.UNFIT, Verdict.NO_END, Verdict.NO_ROUTE]
    raise min(stops, key=lambda stop: order.index(stop.verdict))


async def _once(attempt: Awaitable[NewLink]) -> NewLink:
    """A connection can end at any moment, so that any call on its socket fails: then it is this try
    that has failed, and others follow."""
    try:
        return await attempt
    except OSError as error:
        raise Stopped(Verdict.SILENT, words(error)) from None


async def _connect_way(site: Site, sock: socket.socket, way: Way) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The port is chosen when connecting, so that one serves many peers.
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    source, target = _socket_addresses(way)
    await _connect(sock, source, target, site.settings.connect_timeout_s)


async def _dial_rdma(site: Site, contact: Contact, state: RailState, way: Way | None) -> NewLink:
    """The handshake is held over TCP, or within a host over the Unix socket. That connection stays
    open as long as the link: its end is the end of the peer."""
    sock = socket.socket(_family(way), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    opened = 0
    try:
        if way is None:
            target = f"\0{contact.card.local_name}"
            await _connect(sock, None, target, site.settings.connect_timeout_s)
        else:
            await _connect_way(site, sock, way)
        ends = (state.rail.own, state.rail.theirs)
        link = secrets.randbits(64) or 1
        endpoint = rdma_meeting.open_end(site, link, state.rail.own)
        opened = link
        talk, hello = _begin(site, contact, state, sock, ends, link, endpoint)
        welcome = await greet(talk, hello)
        if welcome.unfit:
            raise Stopped(Verdict.UNFIT, welcome.unfit)
        await rdma_meeting.join(site, link, welcome.endpoint, True)
        await rdma_meeting.greeted(site, link, state.name)
        await talk.send(Ready())
        await talk.receive(Ready)
        opened = 0
        name = rail_name("rdma", *ends)
        return NewLink(link, "rdma", name, (sock.detach(),), True, 0, welcome.session)
    finally:
        sock.close()
        if opened:
            rdma_meeting.drop(site, opened)


def _family(way: Way | None) -> socket.AddressFamily:
    if way is None:
        return socket.AF_UNIX
    return socket.AF_INET if way.source.ip.version == 4 else socket.AF_INET6


async def _dial_tcp(site: Site, contact: Contact, state: RailState, way: Way) -> NewLink:
    sock = socket.socket(_family(way), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await _connect_way(site, sock, way)
        hosts = (way.source.host, way.target.host)
        talk, hello = _begin(site, contact, state, sock, hosts)
        welcome = await greet(talk, hello)
        name = rail_name("tcp", *hosts)
        return NewLink(hello.link, "tcp", name, (sock.detach(),), True, 0, welcome.session)
    finally:
        sock.close()


def _socket_addresses(way: Way) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    if way.source.ip.version == 4:
        return (way.source.host, 0), (way.target.host, way.target.port)
    scope = way.source.scope
    return (way.source.host, 0, 0, scope), (way.target.host, way.target.port, 0, scope)


async def _dial_unix(site: Site, contact: Contact, state: RailState) -> NewLink:
    kind = state.rail.kind
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    fds: tuple[list[int], list[int]] = ([], [])
    try:
        target = f"\0{contact.card.local_name}"
        await _connect(sock, None, target, site.settings.connect_timeout_s)
        talk, hello = _begin(site, contact, state, sock, ("", ""))
        welcome = await greet(talk, hello)
        pid = unix_peer(sock)[0]
        if welcome.unfit:
            raise Stopped(Verdict.UNFIT, welcome.unfit)
        if kind == "cma":
            card = contact.card
            unfit = cma_unfit(site, pid, card.probe_address, card.probe_value)
            if unfit:
                raise await talk.refuse(Verdict.UNFIT, unfit)
        try:
            fds = site.native.open_local_channel()
        except (RuntimeError, OSError) as error:
            unfit = f"no channel in shared memory: {error}"
            raise await talk.refuse(Verdict.UNFIT, unfit) from None
        await talk.send(Attach(), fds[1])
        await talk.receive(Ready)
        ours = (*fds[0], sock.detach())
        fds[0].clear()
        return NewLink(hello.link, kind, kind, ours, True, pid, welcome.session)
    finally:
        sock.close()
        close_fds([*fds[0], *fds[1]])


def cma_unfit(site: Site, pid: int, address: int, value: int) -> str:
    """Why the memory of a process cannot be read directly, "" when it can."""
    if pid == 0:
        return "the other process is not visible from this one's pid namespace"
    return site.native.probe_cma(pid, address, value)


async def _connect(
    sock: socket.socket,
    source: tuple[str | int, ...] | None,
    target: tuple[str | int, ...] | str,
    timeout_s: float,
) -> None:
    try:
        if source is not None:
            sock.bind(source)
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, target)
    except ConnectionRefusedError:
        raise Stopped(Verdict.GONE, "no process listens there") from None
    except OSError as error:
        verdict = Verdict.NO_ROUTE if error.errno in NO_ROUTE else Verdict.SILENT
        raise Stopped(verdict, words(error)) from None
    # A port of our own that happens to be the target connects to itself when nobody listens.
    if source is not None and sock.getsockname() == sock.getpeername():
        raise Stopped(Verdict.GONE, "no process listens there")


def _begin(
    site: Site,
    contact: Contact,
    state: RailState,
    sock: socket.socket,
    ends: tuple[str, str],
    link: int = 0,
    endpoint: bytes = b"",
) -> tuple[Conversation, Hello]:
    secret = site.settings.secret
    if secret is None and vanished(sock):
        raise Stopped(Verdict.SILENT, "nobody listens there any more")
    why = stranger(sock, dialed=True) if secret is None else ""
    if why:
        raise Stopped(Verdict.DENIED, why)
    hello = Hello(
        card=site.card,
        expected=contact.card.incarnation,
        nonce=os.urandom(NONCE_BYTES),
        link=link or secrets.randbits(64) or 1,
        kind=state.rail.kind,
        source=ends[0],
        target=ends[1],
        replaces=state.last_link,
        insist=state.insist,
        session=contact.session,
        peer_session=contact.their_session,
        endpoint=endpoint,
    )
    return Conversation(sock, secret, site.step_timeout_s), hello
