"""Stage: api, control. How cards, tickets and handshake messages are wrapped: version, length, CRC.

Called wherever bytes come from outside, on any thread; pure. What always holds: `unwrap` returns
exactly what `wrap` was given, or raises a TicketError that says what is wrong with the bytes.
"""

from __future__ import annotations

import struct
import zlib
from typing import TypeVar

import msgspec
from msgspec.msgpack import Decoder

from .errors import TicketError

# Grows with every change of the wire format, the handshake, cards or tickets. The header itself
# stays as it is for ever: it must tell any version that it is another one.
PROTOCOL = 3
MAGIC = b"TENT"
_HEADER = struct.Struct("<4scBxxII")  # magic, kind, protocol, body bytes, CRC-32 of the body
HEADER_BYTES = _HEADER.size
_NAMES = {b"T": "ticket", b"C": "card", b"H": "handshake message"}

S = TypeVar("S")


class ForeignError(TicketError):
    """Bytes that torch_tent did not make."""


class VersionError(TicketError):
    """Bytes of another version of torch_tent."""


def wrap(kind: bytes, value: msgspec.Struct) -> bytes:
    """The bytes of a value; `kind` is one of the letters of `_NAMES`."""
    body = msgspec.msgpack.encode(value)
    return _HEADER.pack(MAGIC, kind, PROTOCOL, len(body), zlib.crc32(body)) + body


def body_bytes(kind: bytes, header: bytes) -> int:
    """How many bytes follow this header. Raises TicketError for one that is not ours."""
    name = _NAMES[kind]
    if header[:4] != MAGIC[: len(header)] or not header:
        begin = f"they begin with {header!r}" if header else "there are none"
        raise ForeignError(f"these bytes are not a {name} of torch_tent: {begin}")
    if len(header) < HEADER_BYTES:
        raise TicketError(f"the {name} is truncated: {len(header)} bytes are not even its header")
    _, found, protocol, length, _ = _HEADER.unpack(header)
    if protocol != PROTOCOL:
        raise VersionError(
            f"{name} of protocol {protocol}, this is protocol {PROTOCOL}: upgrade torch_tent "
            f"{'here' if protocol > PROTOCOL else 'there'}, so that both ends have one version"
        )
    if found != kind:
        what = _NAMES.get(found, "something unknown")
        raise TicketError(f"a {name} is needed, these bytes are a {what} of torch_tent")
    return int(length)


def unwrap(kind: bytes, data: bytes | bytearray | memoryview, decoder: Decoder[S]) -> S:
    """The value in `data`. Raises TicketError for foreign, truncated, damaged or too new bytes."""
    name = _NAMES[kind]
    data = bytes(data)
    length = body_bytes(kind, data[:HEADER_BYTES])
    body = data[HEADER_BYTES:]
    if len(body) < length:
        raise TicketError(
            f"the {name} is truncated: {len(data)} of {HEADER_BYTES + length} bytes are here"
        )
    if len(body) > length:
        raise TicketError(f"{len(body) - length} bytes too many follow the {name}")
    if zlib.crc32(body) != _HEADER.unpack_from(data)[4]:
        raise TicketError(f"the {name} is damaged: its checksum is wrong")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TicketError(f"the {name} is malformed: {error}") from None
