"""Hand-made frames of csrc/core/wire.h, to send what no engine would: used by test_malformed.py."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

HEADER = struct.Struct("<IBBHIIQQQQQQ")
MAGIC = 0x31544E54
SLICE, OPEN, CONTROL, ACK, PING = 1, 2, 3, 4, 5
OFFER, ACCEPT, WRITE, READ, READ_DATA, DONE, REFUSE, CANCEL, CANCELLED, FENCE, FENCED, BYE = range(
    1, 13
)
FLOW_BIT = 1 << 63


@dataclass
class Frame:
    """One frame; what is not given is what an engine would send."""

    kind: int
    body: bytes = b""
    sequence: int = 1
    magic: int = MAGIC
    flags: int = 0
    reserved: int = 0
    body_bytes: int | None = None
    crc: int = 0
    ack: int = 0
    flow: int = 0
    offset: int = 0
    control: int = 0

    def pack(self) -> bytes:
        size = len(self.body) if self.body_bytes is None else self.body_bytes
        return (
            HEADER.pack(
                self.magic,
                self.kind,
                self.flags,
                self.reserved,
                size,
                self.crc,
                self.sequence,
                self.ack,
                0,
                self.flow,
                self.offset,
                self.control,
            )
            + self.body
        )


def contiguous(offset: int, size: int, plane: int = 0) -> bytes:
    """A layout of one piece."""
    return struct.pack("<IQIQIB", 1, offset, plane, size, 0, 0)


def target(segment: int, key: int, layout: bytes, epoch: int = 0) -> bytes:
    return struct.pack("<IQI", segment, key, epoch) + layout


def write_message(flow: int, where: bytes, payload: bytes, note: bytes = b"") -> bytes:
    """A small one-sided write, its payload inline."""
    head = struct.pack("<BQBI", WRITE, flow, bool(note), len(note)) + note
    return head + where + struct.pack("<I", len(payload)) + payload


def opening(size: int, where: bytes, kind: int = 1) -> bytes:
    """The body of an Open frame: a write of `size` bytes to `where`."""
    return struct.pack("<BQQBI", kind, size, 0, 0, 0) + where


def read_frame(sock: socket.socket) -> tuple[int, bytes] | None:
    """The next frame's kind and body, or None when the other side has closed."""
    head = _exact(sock, HEADER.size)
    if head is None:
        return None
    fields = HEADER.unpack(head)
    body = _exact(sock, fields[4])
    return None if body is None else (fields[1], body)


def _exact(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except ConnectionResetError:
            return None
        if not part:
            return None
        data += part
    return data
