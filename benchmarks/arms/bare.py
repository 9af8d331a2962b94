"""Stage: benchmarks, in a player. The limits: what memory, kernel and plain sockets can do.

The same memory, rounds and checks as the engines, with the loops of limits.c.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import time
from pathlib import Path
from typing import Any

import bare
import numpy as np

from .base import Arm, Idle, Missing, Probe, Steps, Wakes, block_order, check_blocks

PR_SET_PTRACER = 0x59616D61  # <linux/prctl.h>: lets the other player read our memory
WAKERS = {
    "eventfd": bare.EVENTFD,
    "futex": bare.FUTEX,
    "tcp": bare.TCP,
    "tcp_busy": bare.TCP_BUSY,
    "spin": bare.SPIN,
}


class Timed(Probe):
    """A loop in C that returns its own seconds."""

    def __init__(self, loop: Any, source: Any = None, target: Any = None, passive: bool = True):
        super().__init__(source, target)
        self.loop = loop
        self.passive = passive

    def run(self, times: int) -> dict[str, Any]:
        """Measures inside C."""
        return {"seconds": bare.seconds(self.loop(times))}


class BareArm(Arm):
    """Two processes without any engine."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        try:
            self.library = bare.load()
        except OSError as why:
            raise Missing(str(why)) from None
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))

    def version(self) -> str:
        """The kernel's."""
        return f"Linux {platform.release()}"

    def offer_memcpy(self, case: dict[str, Any]) -> Probe:
        """memcpy by one thread, within rank 0."""
        if self.seat.rank > 0:
            return Idle()
        source, target = self.buffer(case), self.buffer(case)
        to, start, size = target.ctypes.data, source.ctypes.data, source.nbytes
        return Timed(lambda n: self.library.copy_memory(to, start, size, n), source, target)

    def offer_readv(self, case: dict[str, Any]) -> Probe:
        """process_vm_readv from rank 1's memory into rank 0's."""
        mine = self.buffer(case)
        pid, start = self.seat.exchange((os.getpid(), mine.ctypes.data))[1]
        if self.seat.rank > 0:
            return Idle(source=mine)
        to, size = mine.ctypes.data, mine.nbytes
        return Timed(lambda n: self.library.pull_memory(pid, to, start, size, n), target=mine)

    def offer_copy_blocks(self, case: dict[str, Any]) -> Probe:
        """memcpy of each block, within rank 0."""
        if self.seat.rank > 0:
            return Idle()
        source, target = self.buffer(case), self.buffer(case)
        order = block_order(case)
        at = (target.ctypes.data, source.ctypes.data, order[1].ctypes.data, order[0].ctypes.data)
        block, count = case["block"], case["count"]
        loop = self.library.copy_blocks
        probe = TimedBlocks(lambda n: loop(*at, count, block, n), source, target)
        probe.kept = (case, order)
        return probe

    def offer_readv_blocks(self, case: dict[str, Any]) -> Probe:
        """process_vm_readv of the blocks, 1024 in a call."""
        mine = self.buffer(case)
        pid, start = self.seat.exchange((os.getpid(), mine.ctypes.data))[1]
        if self.seat.rank > 0:
            return Idle(source=mine)
        order = block_order(case)
        at = (pid, mine.ctypes.data, start, order[1].ctypes.data, order[0].ctypes.data)
        block, count = case["block"], case["count"]
        loop = self.library.pull_blocks
        probe = TimedBlocks(lambda n: loop(*at, count, block, n), target=mine)
        probe.kept = (case, order)
        return probe

    def offer_pingpong(self, case: dict[str, Any]) -> Probe:
        """Round trips in C with a forked child, both awake; `how` names the waker."""
        if self.seat.rank > 0:
            return Idle()
        how, size = WAKERS[case["how"]], case["bytes"]
        return Timed(lambda n: sum(bare.ping_pong(self.library, how, size, n)))

    def offer_wake(self, case: dict[str, Any]) -> Probe:
        """Half a round trip where both sides have gone to sleep before."""
        return Idle() if self.seat.rank > 0 else Waking(self.library, WAKERS[case["how"]])

    def offer_python_wake(self, case: dict[str, Any]) -> Probe:
        """An eventfd, written and read from Python, as the engines' wake-ups are measured."""
        place = str(self.seat.folder / "wake")
        stamp = np.memmap(f"{place}.stamp", np.int64, "w+", shape=1)
        if self.seat.rank == 0:
            event = os.eventfd(0)
            with socket.socket(socket.AF_UNIX) as door:
                door.bind(place)
                door.listen(1)
                self.seat.exchange(None)
                with door.accept()[0] as other:
                    socket.send_fds(other, [b"e"], [event])
            Path(place).unlink()
        else:
            self.seat.exchange(None)
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(place)
                event = socket.recv_fds(other, 1, 1)[1][0]
        return Wakes(
            self.seat.rank,
            lambda: os.eventfd_write(event, 1),
            lambda: os.eventfd_read(event),
            stamp,
        )

    def offer_streams(self, case: dict[str, Any]) -> Probe:
        """Plain sockets, one a rail; `rails`: (ours, theirs) addresses, `shares`: weights."""
        mine = self.buffer(case)
        sockets = self.connect(case["rails"])
        shares = split(case["bytes"], case.get("shares") or [1] * len(sockets))
        out = self.seat.rank == 0
        address = mine.ctypes.data
        return Steps(
            lambda: bare.move_streams(self.library, sockets, shares, address, out),
            source=mine if out else None,
            target=None if out else mine,
            close=lambda: [s.close() for s in sockets],
        )

    def offer_noise(self, case: dict[str, Any]) -> Probe:
        """Another program's traffic on one rail: on and off, for some seconds."""
        sockets = self.connect(case["rails"])
        return Noise(sockets[0], self.seat.rank == 0, case)

    def offer_meet(self, case: dict[str, Any]) -> Probe:
        """A new TCP connection, and 8 bytes over it."""
        listener = socket.create_server(("127.0.0.1", 0)) if self.seat.rank == 1 else None
        own = listener.getsockname()[1] if listener is not None else 0
        port = self.seat.exchange(own)[1]

        def once() -> None:
            if listener is None:
                with socket.create_connection(("127.0.0.1", port)) as made:
                    made.sendall(bytes(8))
                    made.recv(1)
            else:
                with listener.accept()[0] as made:
                    made.recv(8, socket.MSG_WAITALL)
                    made.sendall(b"k")

        return Steps(once, close=None if listener is None else listener.close)

    def connect(self, rails: list[tuple[str, str]]) -> list[socket.socket]:
        """One connected socket a rail, by rank 0's and rank 1's addresses on it."""
        listeners = []
        if self.seat.rank == 1:
            listeners = [socket.create_server((theirs, 0)) for _, theirs in rails]
        ports = self.seat.exchange([s.getsockname()[1] for s in listeners])[1]
        if self.seat.rank == 1:
            found = [listener.accept()[0] for listener in listeners]
            for listener in listeners:
                listener.close()
            return found
        found = []
        for (ours, theirs), port in zip(rails, ports, strict=True):
            found.append(socket.create_connection((theirs, port), 5.0, (ours, 0)))
            found[-1].settimeout(None)  # C uses the descriptor: it has to block
        return found


class TimedBlocks(Timed):
    """As Timed, for the blocks of `memory.block_order`."""

    kept: tuple[dict[str, Any], Any] = ({}, None)  # the case, and the arrays that C reads

    def check(self, salt: int) -> str:
        """Every block in its place."""
        return check_blocks(self.kept[0], self.target, salt)


class Noise(Probe):
    """Sends as fast as the socket takes it, `on_s` long, then rests as long, and so on."""

    def __init__(self, socket_: socket.socket, out: bool, case: dict[str, Any]) -> None:
        super().__init__()
        self.socket = socket_
        self.out = out
        self.case = case

    def run(self, times: int) -> dict[str, Any]:
        """The receiver reports [seconds of the machine's clock, bytes] for each piece."""
        piece = bytearray(256 << 10)
        if not self.out:
            arrived = []
            while (got := self.socket.recv_into(piece)) > 1:
                arrived.append((time.monotonic(), got))
            return {"seconds": 0.0, "notes": {"noise": arrived}}
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < self.case["seconds"]:
            if int(passed / self.case["on_s"]) % 2:
                time.sleep(1e-3)
            else:
                self.socket.sendall(piece)
        time.sleep(0.2)
        self.socket.sendall(b"e")
        return {"seconds": 0.0}


class Waking(Probe):
    """How long a wake-up takes that finds its waiter asleep."""

    passive = True

    def __init__(self, library: Any, how: int) -> None:
        super().__init__()
        self.library = library
        self.how = how

    def run(self, times: int) -> dict[str, Any]:
        """Half of each round trip, 3 ms apart."""
        return {"samples": [s / 2 for s in bare.ping_pong(self.library, self.how, 8, times, 3e-3)]}


def split(size: int, weights: list[float]) -> list[int]:
    """`size` bytes in the ratio of the weights, exactly."""
    shares = [int(size * weight / sum(weights)) for weight in weights]
    shares[0] += size - sum(shares)
    return shares


ARM = BareArm
