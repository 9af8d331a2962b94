"""Stage: benchmarks, in a player. The kernel's Multipath TCP: one socket, a subflow on each rail.

Needs root inside the namespaces of rails.sh, where it announces rank 1's addresses.
"""

from __future__ import annotations

import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

from .base import Arm, Missing, Probe, Steps
from .flow import Flow

IPPROTO_MPTCP = 262
PIECE = 4 << 20


class MptcpArm(Arm):
    """One connection, made when it is first asked for."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        self.rails: list[tuple[str, str]] = seat.options["rails"]
        enabled = Path("/proc/sys/net/mptcp/enabled")
        if not enabled.exists():
            raise Missing("this kernel has no Multipath TCP")
        enabled.write_text("1")
        _ip("flush")
        _ip("limits", "set", "subflow", "8", "add_addr_accepted", "8")
        if seat.rank == 1:  # rank 0's own routes choose the rail to each announced address
            for number, (_, theirs) in enumerate(self.rails[1:], 1):
                _ip("endpoint", "add", theirs, "dev", f"r{number}", "signal")
        self.socket = self._connect()

    def version(self) -> str:
        """The kernel's."""
        return f"MPTCP of Linux {platform.release()}"

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
        if self.seat.rank == 1:
            made.bind(("0.0.0.0", 0))  # subflows join at every announced address
            made.listen(1)
            self.seat.exchange(made.getsockname()[1])
            return made.accept()[0]
        port = self.seat.exchange(0)[1]
        made.connect((self.rails[0][1], port))
        return made

    def offer_write(self, case: dict[str, Any]) -> Probe:
        """Bytes one way; the receiver says when it has them."""
        mine = self.buffer(case)
        view = memoryview(mine)

        def send() -> None:
            self.socket.sendall(view)
            self._read(memoryview(bytearray(1)))

        def recv() -> None:
            self._read(view)
            self.socket.sendall(b"k")

        if self.seat.rank == 0:
            return Steps(send, source=mine)
        return Steps(recv, target=mine)

    def offer_flow(self, case: dict[str, Any]) -> Probe:
        """The same, again and again."""
        return Flow(self, self.offer_write(case), case)

    def tell(self, go: bool) -> bool:
        """Rank 0's word on whether another one follows, at both ends."""
        if self.seat.rank == 0:
            self.socket.sendall(bytes([go]))
            return go
        word = bytearray(1)
        self._read(memoryview(word))
        return bool(word[0])

    def _read(self, view: memoryview) -> None:
        while view:
            got = self.socket.recv_into(view, min(len(view), PIECE))
            if not got:
                raise OSError("the connection ended")
            view = view[got:]


def _ip(*words: str) -> None:
    """`ip mptcp`; "flush" is that of the endpoints."""
    words = ("endpoint", "flush") if words == ("flush",) else words
    done = subprocess.run(["ip", "mptcp", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"ip mptcp {' '.join(words)}: {done.stderr.strip()}")


ARM = MptcpArm
