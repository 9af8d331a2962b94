"""Stage: control. The handshake: who is there, do both know the secret, which link is this.

    dialer                              listener
      Hello    card, nonce, link   →
                                   ←    Challenge  nonce, incarnation
      Proof    HMAC                →
                                   ←    Welcome    HMAC, session          (TCP: the link is up)
      Attach   descriptors         →                                      (same host only)
                                   ←    Ready
      Ready                        →                                      (RDMA only)
At any point the listener may answer Refusal. Each HMAC-SHA256 covers the role and every byte said
before it, so that nonces, incarnations, link, rail and version cannot be exchanged. Runs on the
control thread. What always holds: nothing about peers changes before a proof was found right.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import struct
from collections.abc import Awaitable, Callable

from . import topology
from .card import PORT_NAME_MAX
from .conversation import Challenge, Conversation, Hello, Proof, Stopped, Verdict, Welcome

NONCE_BYTES = 32
SESSION_BYTES = 8
ENDPOINT_BYTES_MAX = 256
SECRETS_DIFFER = (
    "the secrets differ: set the same TENT_SECRET (or TENT_SECRET_FILE) for both, or for none"
)


async def greet(talk: Conversation, hello: Hello) -> Welcome:
    """The dialer's part, up to the welcome. Raises Stopped."""
    await talk.send(hello)
    challenge = await talk.receive(Challenge)
    if challenge.incarnation != hello.expected or len(challenge.nonce) != NONCE_BYTES:
        raise Stopped(Verdict.GONE, "restarted: another process answers at its address")
    await talk.send(Proof(talk.mac(b"dialer", talk.said())))
    said = talk.said()
    welcome = await talk.receive(Welcome)
    if not hmac.compare_digest(welcome.mac, talk.mac(b"listener", said, _more(welcome))):
        raise Stopped(Verdict.DENIED, SECRETS_DIFFER)
    if len(welcome.session) != SESSION_BYTES:
        raise Stopped(Verdict.SILENT, "its session has a wrong length")
    return welcome


async def answer(
    talk: Conversation, incarnation: bytes, judge: Callable[[Hello], Awaitable[Welcome]]
) -> tuple[Hello, Welcome]:
    """The listener's part, up to the welcome: what was said on both sides. Raises Stopped.

    `judge` decides about a dialer that has proved itself: it returns a Welcome that lacks the HMAC,
    or raises Stopped, which the dialer is told.
    """
    try:
        hello = await talk.receive(Hello)
    except Stopped as stop:
        if stop.verdict is Verdict.DENIED:  # Another version: it should hear of it.
            await talk.refuse(stop.verdict, stop.reason)
        raise
    _check(hello)
    if hello.expected != incarnation:
        text = f"restarted: process {os.getpid()} answers at its address now"
        raise await talk.refuse(Verdict.GONE, text)
    await talk.send(Challenge(os.urandom(NONCE_BYTES), incarnation))
    wanted = talk.mac(b"dialer", talk.said())
    proof = await talk.receive(Proof)
    if not hmac.compare_digest(proof.mac, wanted):
        raise await talk.refuse(Verdict.DENIED, SECRETS_DIFFER)
    try:
        welcome = await judge(hello)
    except Stopped as stop:
        raise await talk.refuse(stop.verdict, stop.reason) from None
    mac = talk.mac(b"listener", talk.said(), _more(welcome))
    await talk.send(Welcome(mac, welcome.session, welcome.unfit, welcome.endpoint))
    return hello, welcome


def _more(welcome: Welcome) -> bytes:
    """What the listener's proof covers of the message that carries it."""
    return welcome.session + welcome.unfit.encode() + b"\0" + welcome.endpoint


def _check(hello: Hello) -> None:
    good = (
        len(hello.nonce) == NONCE_BYTES
        and 0 < hello.link < 1 << 64
        and 0 <= hello.replaces < 1 << 64
        and hello.kind in ("shm", "cma", "tcp", "rdma", "cuda_ipc")
        and len(hello.session) == SESSION_BYTES
        and len(hello.peer_session) in (0, SESSION_BYTES)
        and all(_good_end(hello.kind, end) for end in (hello.source, hello.target))
        and bool(hello.source and hello.target) == (hello.kind in ("tcp", "rdma"))
        and bool(hello.endpoint) == (hello.kind == "rdma")
        and len(hello.endpoint) <= ENDPOINT_BYTES_MAX
    )
    if not good:
        raise Stopped(Verdict.SILENT, "a greeting whose parts cannot be")


def _good_end(kind: str, text: str) -> bool:
    if kind == "rdma":
        return len(text) <= PORT_NAME_MAX and text.isprintable()
    try:
        return not text or ("%" not in text and bool(ipaddress.ip_address(text)))
    except ValueError:
        return False


def unix_peer(sock: socket.socket) -> tuple[int, int]:
    """(pid, user id) at the other end of a Unix socket, as seen from here; pid 0: not visible."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("iII", data)
    return pid, uid


def vanished(sock: socket.socket) -> bool:
    """Whether nobody listens any more where this socket has connected: its owner is ending."""
    if sock.family == socket.AF_UNIX:
        return False
    there = sock.getpeername()[:2]
    if not ipaddress.ip_address(there[0]).is_loopback:
        return False
    # The kernel writes its table in pieces: a socket can slip through while others go.
    return all(topology.listener_owner(there) is None for _ in range(3))


def stranger(sock: socket.socket, dialed: bool) -> str:
    """Why the other end is not this user's, "" when it is: the only door there is without a secret.

    `dialed`: we have connected this socket. Then the owner of the listening one is asked for.
    """
    if sock.family == socket.AF_UNIX:
        owner: int | None = unix_peer(sock)[1]
    else:
        here, there = sock.getsockname()[:2], sock.getpeername()[:2]
        if not ipaddress.ip_address(there[0]).is_loopback:
            return "it is on another host, and there is no secret: set TENT_SECRET for both"
        for _ in range(3):  # As above.
            owner = topology.listener_owner(there) if dialed else topology.socket_owner(there, here)
            if owner is not None:
                break
    if owner == os.geteuid():
        return ""
    whose = "of user " + str(owner) if owner is not None else "of an unknown user"
    return f"it is a process {whose}, this is user {os.geteuid()}: set TENT_SECRET for both"
