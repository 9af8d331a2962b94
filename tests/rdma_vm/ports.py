"""Stage: tests. The guest's three serial ports as Unix sockets: its output, its errors, its news.

Used by machine.py on the main thread. What always holds: output is passed on as it comes, and
`relay` ends when the guest has ended or the time is up.
"""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

NAMES = ("out", "err", "says")
STEP_S = 0.2
LAST_WORDS_S = 2.0  # For what a guest wrote before it ended.


@dataclass
class Said:
    """What the guest told about itself."""

    ready_at: float = 0.0
    ended_at: float = 0.0
    status: int | None = None
    timed_out: bool = False


class Ports:
    """Sockets that qemu connects to."""

    def __init__(self, folder: Path) -> None:
        self.paths = {name: folder / f"port-{name}" for name in NAMES}
        self._selector = selectors.DefaultSelector()
        self._open: set[socket.socket] = set()
        self._news = b""
        self._said = Said()
        for name, path in self.paths.items():
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen(1)
            self._selector.register(listener, selectors.EVENT_READ, (name, True))
            self._open.add(listener)

    def relay(self, guest: subprocess.Popen[bytes], deadline: float) -> Said:
        """Passes everything on until the guest has ended, at the latest at `deadline`."""
        quiet_after = deadline
        while self._open and time.monotonic() < quiet_after:
            for key, _ in self._selector.select(STEP_S):
                self._serve(key)
            if guest.poll() is not None and quiet_after == deadline:
                quiet_after = min(deadline, time.monotonic() + LAST_WORDS_S)
        self._said.timed_out = guest.poll() is None and time.monotonic() >= deadline
        return self._said

    def _serve(self, key: selectors.SelectorKey) -> None:
        name, listens = key.data
        assert isinstance(key.fileobj, socket.socket)
        if listens:
            port = key.fileobj.accept()[0]
            self._drop(key.fileobj)
            self._open.add(port)
            self._selector.register(port, selectors.EVENT_READ, (name, False))
            return
        data = key.fileobj.recv(1 << 16)
        if not data:
            self._drop(key.fileobj)
        elif name == "says":
            self._hear(data)
        else:
            to: BinaryIO = sys.stdout.buffer if name == "out" else sys.stderr.buffer
            to.write(data)
            to.flush()

    def _hear(self, data: bytes) -> None:
        *lines, self._news = (self._news + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "ready":
                self._said.ready_at = time.monotonic()
            elif word == "status":
                self._said.status, self._said.ended_at = int(rest), time.monotonic()
            else:
                print(f"rdma_vm: {rest}", file=sys.stderr)

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._open.discard(sock)
        sock.close()

    def close(self) -> None:
        """Closes what is still open."""
        for sock in list(self._open):
            self._drop(sock)
        self._selector.close()
