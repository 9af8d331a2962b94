"""Stage: benchmarks, the parent. When a rail that is mended is really open again: what the kernel
itself says of its carrier and ports, and the first packets that cross it.

Used by rdma_faults.py while another program uses the rail, on a thread of its own. What always
holds: it ends after LIMIT_S, and sends one small frame each way in STEP_S until then at most.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from pathlib import Path

ETHER_TYPE = 0x88B5  # IEEE 802: for local experiments
BROADCAST = b"\xff" * 6
STEP_S = 0.005
LIMIT_S = 5.0


class Opening(threading.Thread):
    """From its start on: `moments` has the machine's clock at which something was true first.

    `ends`: the two interfaces; `devices`: the verbs device of each. "port END": its device says
    that the port is active; "from END": a frame that was sent there has come out at the other end.
    """

    def __init__(self, ends: tuple[str, str], devices: tuple[str, str]) -> None:
        super().__init__(daemon=True)
        self.moments: dict[str, float] = {}
        self._ends = ends
        self._states = [Path(f"/sys/class/infiniband/{name}/ports/1/state") for name in devices]

    def run(self) -> None:
        """Looks and sends until all is true."""
        deadline = time.monotonic() + LIMIT_S
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(_raw(end)) for end in self._ends]
            while len(self.moments) < 4 and time.monotonic() < deadline:
                for place, end in enumerate(self._ends):
                    if "ACTIVE" in self._states[place].read_text():
                        self._first(f"port {end}")
                    if f"from {end}" not in self.moments:
                        _send(ends[place])
                readable, _, _ = select.select(ends, [], [], STEP_S)
                for place, end in enumerate(self._ends):
                    if ends[1 - place] in readable and _received(ends[1 - place]):
                        self._first(f"from {end}")

    def open_at(self) -> float | None:
        """When the last of all was true, if it was."""
        self.join()
        return max(self.moments.values()) if len(self.moments) == 4 else None

    def _first(self, what: str) -> None:
        self.moments.setdefault(what, time.monotonic())


def _raw(end: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHER_TYPE))
    made.bind((end, ETHER_TYPE))
    made.setblocking(False)
    return made


def _send(end: socket.socket) -> None:
    own = end.getsockname()[4]
    with contextlib.suppress(OSError):  # It is down.
        end.send(BROADCAST + own + ETHER_TYPE.to_bytes(2, "big") + bytes(46))


def _received(end: socket.socket) -> bool:
    try:
        return len(end.recv(64)) > 0
    except OSError:  # It was down.
        return False
