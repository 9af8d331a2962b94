"""Stage: tests, in the virtual machine. A peer made of pyverbs alone: it speaks an engine's frames
over a queue pair of its own, and can try with every key that it was given.

The messages are those of csrc/transports/rdma/link.h (8 bytes, then a part of the stream), the
stream's frames those of csrc/core/wire.h; the bytes of a slice do not travel in the stream but are
named there: key, address, length. What always holds: every wait has an end.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from typing import Any

from tests.faults import frames
from tests.faults.frames import HEADER, Frame
from tests.rdma import debian
from torch_tent.rdma_ports import RdmaPort, rdma_ports

debian.require_pyverbs()
import pyverbs.enums as e  # noqa: E402
from pyverbs.addr import GID, AHAttr, GlobalRoute  # noqa: E402
from pyverbs.cq import CQ  # noqa: E402
from pyverbs.device import Context  # noqa: E402
from pyverbs.mr import MR  # noqa: E402
from pyverbs.pd import PD  # noqa: E402
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr  # noqa: E402
from pyverbs.wr import SGE, RecvWR, SendWR  # noqa: E402

ENDPOINT = struct.Struct("<IIIHHIBBBB16s")
ENDPOINT_MAGIC = 0x52544E54
PREFIX = struct.Struct("<HHI")
PREFIX_MAGIC, STREAM, GREETING = 0x4D54, 0, 1
CHUNK, NAMED = struct.Struct("<II"), struct.Struct("<QQQ")
PIECES, TORN, BYTES = 1, 2, 3
SLOTS, SLOT_BYTES = 32, 2048
FIRST_PACKET = 7
WAIT_S = 30.0
LAND, SEND, TRIAL = 1, 2, 3  # what a completion is of


@dataclass(frozen=True)
class Piece:
    """Where bytes of a slice lie in the memory of whoever named them."""

    key: int
    address: int
    size: int


@dataclass
class Heard:
    """A frame of the engine; a slice has its pieces, or the bytes that came with it."""

    kind: int
    flow: int
    offset: int
    size: int
    body: bytes = b""
    pieces: list[Piece] = field(default_factory=list)


class Stranger:
    """One end of an RDMA link, on one port. `memory` is what it has itself, `rights` on it."""

    def __init__(self, device: str, size: int = 1 << 20) -> None:
        self.port: RdmaPort = next(p for p in rdma_ports() if p.device == device)
        assert self.port.gid is not None
        self.context = Context(name=device)
        self.domain = PD(self.context)
        self.completions = CQ(self.context, 256)
        rights = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ
        self.memory = MR(self.domain, size, rights)
        self._slots = MR(self.domain, 2 * SLOTS * SLOT_BYTES, rights)
        cap = QPCap(max_send_wr=64, max_recv_wr=SLOTS)
        ends = {"scq": self.completions, "rcq": self.completions}
        wanted = QPInitAttr(qp_type=e.IBV_QPT_RC, cap=cap, sq_sig_all=1, **ends)
        self.queue_pair = QP(self.domain, wanted)
        self.greeted = False
        self.broken: list[str] = []  # completions that failed
        self._done: dict[int, int] = {}  # of our own trials: number to status
        self._trials = 0
        self._stream = b""
        self._posted, self._sequence, self._control, self._owed = 0, 0, 0, 0

    # ---- the link --------------------------------------------------------------------------------

    def endpoint(self) -> bytes:
        """What the engine must know of us."""
        assert self.port.gid is not None
        mtu = self.context.query_port(1).active_mtu
        number, gid = self.queue_pair.qp_num, self.port.gid.raw.packed
        head = (ENDPOINT_MAGIC, number, FIRST_PACKET, 0, SLOTS, SLOT_BYTES)
        return ENDPOINT.pack(*head, mtu, 2, 8, 0, gid)

    def join(self, endpoint: bytes) -> None:
        """Connects to an engine's end."""
        magic, number, first, _, _, _, mtu, _, _, _, gid = ENDPOINT.unpack(endpoint)
        assert magic == ENDPOINT_MAGIC
        assert self.port.gid is not None
        attributes = QPAttr(qp_state=e.IBV_QPS_INIT, port_num=1)
        attributes.qp_access_flags = e.IBV_ACCESS_REMOTE_READ
        self.queue_pair.to_init(attributes)
        for slot in range(SLOTS):
            self._post_slot(slot)
        self._owed = 0
        text = ":".join(gid[at : at + 2].hex() for at in range(0, 16, 2))
        route = GlobalRoute(dgid=GID(text), sgid_index=self.port.gid.index, hop_limit=64)
        attributes = QPAttr(qp_state=e.IBV_QPS_RTR, port_num=1)
        attributes.ah_attr = AHAttr(port_num=1, is_global=1, gr=route)
        attributes.path_mtu, attributes.dest_qp_num, attributes.rq_psn = mtu, number, first
        attributes.max_dest_rd_atomic, attributes.min_rnr_timer = 8, 12
        self.queue_pair.to_rtr(attributes)
        attributes.qp_state, attributes.sq_psn = e.IBV_QPS_RTS, FIRST_PACKET
        attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 14, 6, 6
        attributes.max_rd_atomic = 8
        self.queue_pair.to_rts(attributes)

    def greet(self) -> None:
        """Says that the way works."""
        self._message(GREETING, b"")

    def say(self, frame: Frame, tail: bytes = b"") -> None:
        """One frame, numbered as the engine expects; `tail` describes a slice's bytes."""
        self._sequence += 1
        frame.sequence = self._sequence
        if frame.kind == frames.CONTROL:
            self._control += 1
            frame.control = self._control
        data = frame.pack() + tail
        for at in range(0, len(data), SLOT_BYTES - PREFIX.size):
            self._message(STREAM, data[at : at + SLOT_BYTES - PREFIX.size])

    def _message(self, kind: int, data: bytes) -> None:
        slot = self._posted % SLOTS
        prefix = PREFIX.pack(PREFIX_MAGIC, kind, self._owed)
        self._owed = 0
        offset = slot * SLOT_BYTES
        self._slots.write(prefix + data, PREFIX.size + len(data), offset)
        place = SGE(self._slots.buf + offset, PREFIX.size + len(data), self._slots.lkey)
        number = SEND << 32 | self._posted
        self.queue_pair.post_send(SendWR(number, e.IBV_WR_SEND, num_sge=1, sg=[place]))
        self._posted += 1

    def _post_slot(self, slot: int) -> None:
        offset = (SLOTS + slot) * SLOT_BYTES
        place = SGE(self._slots.buf + offset, SLOT_BYTES, self._slots.lkey)
        self.queue_pair.post_recv(RecvWR(LAND << 32 | slot, num_sge=1, sg=[place]))
        self._owed += 1

    # ---- what comes ------------------------------------------------------------------------------

    def poll(self) -> None:
        """Takes what has completed."""
        _, completions = self.completions.poll(32)
        for completion in completions:
            what, number = completion.wr_id >> 32, completion.wr_id & 0xFFFFFFFF
            if what == TRIAL:
                self._done[number] = completion.status
            elif completion.status != e.IBV_WC_SUCCESS:
                self.broken.append(f"status {completion.status} of {'?LS'[what]}{number}")
            elif what == LAND:
                self._took(number, completion.byte_len)

    def _took(self, slot: int, size: int) -> None:
        data = self._slots.read(size, (SLOTS + slot) * SLOT_BYTES)
        magic, kind, _ = PREFIX.unpack_from(data)
        assert magic == PREFIX_MAGIC
        self.greeted |= kind == GREETING
        self._stream += data[PREFIX.size :]
        self._post_slot(slot)

    def wait(self, what: str, condition: Any) -> None:
        """Polls until the condition holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}; {self.broken}"
            self.poll()
            time.sleep(0.0005)

    def hear(self, kind: int) -> Heard:
        """The next frame of a kind; others that come before it are passed over."""
        found: list[Heard] = []

        def heard() -> bool:
            frame = self._next_frame()
            if frame is not None and frame.kind == kind:
                found.append(frame)
            return bool(found)

        self.wait(f"a frame of kind {kind}", heard)
        return found[0]

    def _next_frame(self) -> Heard | None:
        """Takes a whole frame off the stream, if there is one."""
        if len(self._stream) < HEADER.size:
            return None
        _, kind, _, _, size, _, _, _, _, flow, offset, _ = HEADER.unpack_from(self._stream)
        frame, at = Heard(kind, flow, offset, size), HEADER.size
        if kind == frames.SLICE:
            at = self._described(frame, at)
        else:
            frame.body = self._stream[at : at + size]
            at = at + size if len(frame.body) == size else 0
        if at == 0:
            return None
        self._stream = self._stream[at:]
        return frame

    def _described(self, frame: Heard, at: int) -> int:
        """Reads a slice's description; where it ends, 0 where more of it is to come."""
        described = 0
        while described < frame.size:
            if len(self._stream) < at + CHUNK.size:
                return 0
            kind, count = CHUNK.unpack_from(self._stream, at)
            size = {PIECES: count * NAMED.size, BYTES: count, TORN: 0}[kind]
            body = self._stream[at + CHUNK.size : at + CHUNK.size + size]
            if len(body) < size:
                return 0
            at += CHUNK.size + size
            if kind == PIECES:
                pieces = [Piece(*NAMED.unpack_from(body, n * NAMED.size)) for n in range(count)]
                frame.pieces += pieces
                described += sum(piece.size for piece in pieces)
            elif kind == BYTES:
                frame.body += body
                described += count
            else:
                described = frame.size
        return at

    # ---- what it tries ---------------------------------------------------------------------------

    def read(self, piece: Piece) -> int:
        """RDMA-reads from the engine's memory into the beginning of ours; the status."""
        return self._try(e.IBV_WR_RDMA_READ, piece)

    def write(self, piece: Piece) -> int:
        """RDMA-writes the beginning of our memory into the engine's; the status."""
        return self._try(e.IBV_WR_RDMA_WRITE, piece)

    def _try(self, opcode: int, piece: Piece) -> int:
        self._trials += 1
        number = self._trials
        place = SGE(self.memory.buf, piece.size, self.memory.lkey)
        request = SendWR(TRIAL << 32 | number, opcode, num_sge=1, sg=[place])
        request.set_wr_rdma(piece.key, piece.address)
        self.queue_pair.post_send(request)
        self.wait("the end of a trial", lambda: number in self._done)
        return self._done[number]

    def named(self, offset: int, size: int, key: int | None = None) -> bytes:
        """The description of a slice whose bytes lie in our memory."""
        own = self.memory.rkey if key is None else key
        return CHUNK.pack(PIECES, 1) + NAMED.pack(own, self.memory.buf + offset, size)

    def close(self) -> None:
        """Gives everything back."""
        for part in (self.queue_pair, self.memory, self._slots, self.completions):
            part.close()
        self.domain.close()
        self.context.close()
