"""Stage: CLI. Two hosts that try their fabric: what is said over one TCP connection.

Called by fabric.py and fabric_verbs.py on the main thread. Both prove the secret first, with an
HMAC over their role and both nonces; without a secret only loopback is listened on or dialed. What
always holds: no message is longer than MESSAGE_BYTES_MAX, and every wait has an end.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import struct
from typing import TypeVar

import msgspec

from .errors import TentError
from .rdma_ports import ACTIVE, ADAPTER, Gid, RdmaPort

MESSAGE_BYTES_MAX = 256 << 10
NONCE_BYTES = 32
STEP_S = 30.0  # one answer: an address that is not resolved takes seconds to fail
CALL_S = 600.0  # until somebody calls
_LENGTH = struct.Struct("<I")


class TalkError(TentError):
    """The other host cannot be talked to; the text says why and what to do."""


class FarGid(msgspec.Struct, frozen=True):
    """A GID of the other host's port, as text."""

    index: int
    raw: str
    kind: str


class FarPort(msgspec.Struct, frozen=True):
    """A port of the other host, as far as it matters here."""

    device: str
    number: int
    link_layer: str
    gids: tuple[FarGid, ...]


def as_far(port: RdmaPort) -> FarPort:
    """A port of this host, as another one is told of it."""
    gids = tuple(FarGid(gid.index, gid.raw.exploded, gid.kind) for gid in port.gids)
    return FarPort(port.device, port.number, port.link_layer, gids)


def as_port(far: FarPort, host: str) -> RdmaPort:
    """What another host said of a port, as a target of tries. Raises TalkError for nonsense."""
    try:
        gids = tuple(Gid(g.index, ipaddress.IPv6Address(g.raw), g.kind, "") for g in far.gids)
    except ValueError as error:
        raise TalkError(f"host {host} names a GID that is none: {error}") from None
    return RdmaPort(
        device=far.device,
        node_type=ADAPTER,
        number=far.number,
        state=ACTIVE,
        link_layer=far.link_layer,
        rate_mbit=0,
        lid=0,
        path_mtu_bytes=0,
        numa_node=-1,
        pci_path=(),
        uverbs="there",
        gids=gids,
    )


class End(msgspec.Struct, frozen=True):
    """One end of a queue pair, and the memory behind it."""

    number: int
    lid: int
    mtu: int  # as the verbs number it
    gid: str
    address: int
    key: int


class Ports(msgspec.Struct, frozen=True, tag=True):
    """What the listening host has."""

    host: str
    ports: tuple[FarPort, ...]


class Join(msgspec.Struct, frozen=True, tag=True):
    """Please make an end at this port, for the pair with `end`. The one before is done with."""

    port: str
    gid_index: int
    end: End


class Joined(msgspec.Struct, frozen=True, tag=True):
    """Here it is; or `trouble`, and what to do."""

    end: End | None
    trouble: str = ""
    advice: str = ""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A nonce, and a proof where one is due."""

    nonce: bytes
    mac: bytes = b""


Message = Ports | Join | Joined | Hello
M = TypeVar("M", Ports, Join, Joined, Hello)
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Talk:
    """One connection, both of whose ends have proved the secret. Owns the socket."""

    def __init__(self, sock: socket.socket, secret: bytes | None, dialed: bool) -> None:
        self._sock = sock
        sock.settimeout(STEP_S)
        own = os.urandom(NONCE_BYTES)
        self.send(Hello(own))
        theirs = self.receive(Hello).nonce
        nonces = own + theirs if dialed else theirs + own
        roles = (b"dialer", b"listener") if dialed else (b"listener", b"dialer")
        ours, wanted = (hmac.digest(secret or b"-", role + nonces, "sha256") for role in roles)
        if dialed:
            self.send(Hello(own, ours))
        if not hmac.compare_digest(self.receive(Hello).mac, wanted):
            self.close()
            raise TalkError("the secrets differ: set the same TENT_SECRET on both hosts")
        if not dialed:
            self.send(Hello(own, ours))

    def send(self, message: Message) -> None:
        """Says one thing. Raises TalkError when the other end has gone."""
        body = msgspec.msgpack.encode(message)
        try:
            self._sock.sendall(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            raise TalkError(f"the other host is gone: {error}") from None

    def receive(self, kind: type[M]) -> M:
        """The next message. Raises TalkError for the end, for silence, and for another kind."""
        [size] = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if size > MESSAGE_BYTES_MAX:
            raise TalkError("the other host sends what no doctor would: is something else there?")
        try:
            message = _decoder.decode(self._exactly(size))
        except msgspec.DecodeError as error:
            raise TalkError(f"the other host has another version: {error}") from None
        if not isinstance(message, kind):
            raise TalkError(f"the other host said {type(message).__name__}, not {kind.__name__}")
        return message

    def _exactly(self, count: int) -> bytes:
        data = b""
        try:
            while len(data) < count:
                more = self._sock.recv(count - len(data))
                if not more:
                    raise TalkError("the other host has hung up: are the secrets the same?")
                data += more
        except OSError as error:
            raise TalkError(f"the other host does not answer: {error}") from None
        return data

    def close(self) -> None:
        """Hangs up."""
        self._sock.close()


def listen(address: str, secret: bytes | None) -> socket.socket:
    """A listening socket at HOST:PORT. Raises TalkError."""
    host, port = _split(address, secret)
    try:
        sock = socket.create_server((host, port), family=_family(host), backlog=1)
    except OSError as error:
        raise TalkError(f"{address} cannot be listened on: {error}") from None
    sock.settimeout(CALL_S)
    return sock


def accept(listener: socket.socket, secret: bytes | None) -> Talk:
    """The first caller. Raises TalkError when nobody calls."""
    try:
        sock, _ = listener.accept()
    except OSError as error:
        raise TalkError(f"nobody has called: {error}") from None
    return Talk(sock, secret, dialed=False)


def dial(address: str, secret: bytes | None) -> Talk:
    """Calls the host that listens at HOST:PORT. Raises TalkError."""
    host, port = _split(address, secret)
    try:
        sock = socket.create_connection((host, port), STEP_S)
    except OSError as error:
        raise TalkError(
            f"nobody answers at {address} ({error}): run doctor --rdma --listen there"
        ) from None
    return Talk(sock, secret, dialed=True)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _split(address: str, secret: bytes | None) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise TalkError(f"{address!r} is no HOST:PORT, as in 10.0.0.1:18600")
    if secret is None and not _is_loopback(host):
        raise TalkError("for another host set the same TENT_SECRET on both")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
