"""Stage: tests. Links between two scripted transports in this process, and memory for them to move.

Called by the transports' tests, on their own thread. What always holds: what a Links object made
(sockets, shared memory, transports) is gone when its block ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.contract_module import contract, fake_verbs
from tests.fake_cuda import use

Bytes = npt.NDArray[np.uint8]
Pieces = list[tuple[int, int]]

KINDS = ["tcp4", "tcp6", "shm", "staged", "cma"]
LOCAL = ["shm", "staged", "cma"]
# Over the fake devices: memory that they may touch, and memory that they may not.
RDMA = ["rdma", "rdma copied"]
# Between fake GPUs: arrays are views of where the bytes really are, `address` gives the GPU's.
CUDA = ["cuda_ipc"]
MAGIC = 0x31544E54
SLICE, OPEN, CONTROL, ACK, PING = 1, 2, 3, 4, 5
LINK = 7
FLOW = 5
MIB = 1 << 20
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 0x0002
GUARD = 64  # untouched bytes between pieces


def header(
    kind: int, sequence: int = 0, flow: int = 0, offset: int = 0, body_bytes: int = 0, **other: int
) -> bytes:
    """The 64 bytes of a FrameHeader; `other` sets magic, flags, reserved, crc, ack, control."""
    return struct.pack(
        "<IBBHIIQQQQQQ",
        other.get("magic", MAGIC),
        kind,
        other.get("flags", 0),
        other.get("reserved", 0),
        body_bytes,
        other.get("crc", 0),
        sequence,
        other.get("ack", 0),
        0,
        flow,
        offset,
        other.get("control", 1 if kind == CONTROL else 0),
    )


def transport_name(kind: str) -> str:
    """The transport behind one of KINDS."""
    if kind in RDMA:
        return f"rdma:{fake_verbs()}"
    if kind in CUDA:
        return f"cuda_ipc:{use().c.__file__}"
    return {"tcp4": "tcp", "tcp6": "tcp", "staged": "shm"}.get(kind, kind)


def tcp_sockets(kind: str) -> tuple[socket.socket, socket.socket]:
    """(dialed, accepted), connected over the loopback interface."""
    family, host = (socket.AF_INET6, "::1") if kind == "tcp6" else (socket.AF_INET, "127.0.0.1")
    with socket.create_server((host, 0), family=family) as listener:
        dialed = socket.create_connection(listener.getsockname()[:2])
        return dialed, listener.accept()[0]


def link_descriptors(kind: str) -> tuple[list[int], list[int]]:
    """The descriptors of a new link: (the dialer's, the accepting side's)."""
    if kind.startswith("tcp"):
        dialed, accepted = tcp_sockets(kind)
        return [dialed.detach()], [accepted.detach()]
    ours, theirs = contract().open_local_channel()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return [*ours, left.detach()], [*theirs, right.detach()]


class Shared:
    """Memory in a memfd: `array` is uint8 of `nbytes`."""

    def __init__(self, nbytes: int) -> None:
        self.fd = os.memfd_create("transport-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, nbytes)
        self.map = mmap.mmap(self.fd, nbytes)
        self.array: Bytes = np.frombuffer(self.map, np.uint8)

    def seal(self) -> None:
        fcntl.fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK)

    def close(self) -> None:
        os.close(self.fd)


_on_gpus: list[tuple[int, int, int]] = []  # where the bytes are, how many, the GPU's address


def gpu_memory(nbytes: int, device: int) -> Bytes:
    """Zeroed memory of a fake GPU, as an array of where its bytes really are."""
    at = use().c.alloc(device, nbytes, True)
    shadow = use().c.shadow(at)
    _on_gpus.append((shadow, nbytes, at))
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(shadow), np.uint8)


def address(array: Bytes) -> int:
    at = int(array.ctypes.data)
    return next((gpu + at - own for own, size, gpu in _on_gpus if 0 <= at - own < size), at)


def peek(pieces: Pieces) -> Bytes:
    """The bytes of the pieces, in order."""
    here = [
        (next((own + at - gpu for own, size, gpu in _on_gpus if 0 <= at - gpu < size), at), count)
        for at, count in pieces
    ]
    parts = [np.frombuffer(ctypes.string_at(at, count), np.uint8) for at, count in here]
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def scattered(array: Bytes, nbytes: int, rng: random.Random, pieces_max: int = 40) -> Pieces:
    """Cuts `nbytes` into random pieces of `array`, in random order, GUARD bytes apart."""
    count = rng.randint(1, min(pieces_max, nbytes))
    cuts = sorted(rng.sample(range(1, nbytes), count - 1)) if count > 1 else []
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, nbytes], strict=True)]
    order = list(range(count))
    rng.shuffle(order)
    at, places = address(array) + GUARD, [0] * count
    for index in order:
        places[index] = at
        at += sizes[index] + GUARD
    assert at <= address(array) + array.nbytes
    return list(zip(places, sizes, strict=True))


class Links:
    """Two sides, `a` and `b`, with a link of number LINK between them; `a` dialed."""

    def __init__(self, kind: str, poll_bytes: int = MIB) -> None:
        self.kind = kind
        self.a: Any = contract().Side(transport_name(kind), poll_bytes)
        self.b: Any = contract().Side(transport_name(kind), poll_bytes)
        self.regions = 0
        self.kept: list[Bytes] = []  # memory that the sides may touch
        self.connect(LINK)

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *exc: object) -> None:
        self.a.hang_up()
        self.b.hang_up()

    def connect(self, link: int) -> None:
        if self.kind in RDMA:
            self.connect_rdma(link)
            return
        ours, theirs = link_descriptors(self.kind)
        assert self.a.connect(link, ours, True, os.getpid()) == ""
        assert self.b.connect(link, theirs, False, os.getpid()) == ""

    def connect_rdma(self, link: int, ours: str = "fake0", theirs: str = "fake1") -> None:
        ends = self.a.rdma_open(link, ours), self.b.rdma_open(link, theirs)
        assert self.b.rdma_join(link, ends[0], False) == ""
        assert self.a.rdma_join(link, ends[1], True) == ""
        for _ in range(3):
            self.a.poll()
            self.b.poll()
        assert self.a.rdma_greeted(link) is True
        assert self.b.rdma_greeted(link) is True
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        assert self.a.connect(link, [left.detach()], True, 0) == ""
        assert self.b.connect(link, [right.detach()], False, 0) == ""

    def held(self, nbytes: int) -> Bytes:
        """Zeroed memory that both sides' devices may touch, where the kind is "rdma"."""
        if self.kind in CUDA:
            return gpu_memory(nbytes, 1)
        array = np.zeros(nbytes, np.uint8)
        self.kept.append(array)
        if self.kind == "rdma":
            self.regions += 1
            for side in (self.a, self.b):
                side.hold(self.regions, [(address(array), nbytes)])
        return array

    def memory(self, nbytes: int, side: Any = None) -> Bytes:
        """Zeroed memory that `side` (default a) sends from: in a region where the kind is shm."""
        if self.kind in RDMA:
            return self.held(nbytes)
        if self.kind in CUDA:
            return gpu_memory(nbytes, 0)
        if self.kind != "shm":
            return np.zeros(nbytes, np.uint8)
        shared = Shared(nbytes)
        self.regions += 1
        side = self.a if side is None else side
        assert side.register_region(self.regions, address(shared.array), nbytes, shared.fd) == ""
        shared.close()
        return shared.array

    def drive(self, side: Any, events: int, timeout_s: float = 20.0) -> list[Any]:
        """Polls both until `side` has heard of `events` things; returns all that it heard of."""
        other = self.b if side is self.a else self.a
        done = contract().drive([side, other], events, timeout_s)
        heard = list(side.take_events())
        assert done, f"heard only {summary(heard)}"
        return heard

    def settle(self) -> None:
        """Polls both until nothing moves any more."""
        contract().settle([self.a, self.b])

    def heard(self, side: Any) -> list[Any]:
        """Polls both until nothing moves any more; returns what `side` heard of."""
        self.settle()
        return list(side.take_events())


def summary(events: Sequence[Any]) -> list[tuple[str, int]]:
    """What was heard of, in order, with sequence numbers."""
    return [(event.what, event.sequence) for event in events]


def random_bytes(nbytes: int, rng: random.Random) -> Bytes:
    return np.random.default_rng(rng.getrandbits(32)).integers(1, 256, nbytes, np.uint8)


def one_flow(links: Links, nbytes: int, seed: int = 1) -> tuple[Any, Any]:
    """A contiguous flow from a to b of random bytes: (source array, destination array)."""
    source = links.memory(nbytes)
    source[:] = random_bytes(nbytes, random.Random(seed))
    destination = links.held(nbytes)
    links.kept += [source, destination]
    links.a.source_line(FLOW, [(address(source), nbytes)])
    links.b.landing_line(FLOW, [(address(destination), nbytes)])
    return source, destination


def post_slice(side: Any, sequence: int, offset: int, nbytes: int, flow: int = FLOW) -> None:
    side.post(LINK, header(SLICE, sequence, flow, offset, nbytes), b"")


def post_control(side: Any, sequence: int, body: bytes) -> None:
    side.post(LINK, header(CONTROL, sequence, body_bytes=len(body)), body)


def resources() -> tuple[int, int]:
    """Open descriptors, and mappings of shared memory, of this process."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), maps.count("memfd:tent-")
