"""Stage: benchmarks, in a player. One engine with many idle peers: what they cost it.

Rank 0 is the engine that is looked at; rank 1 forks the peers, each a process with an engine of its
own that reads from rank 0 once and then rests.
"""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch

import torch_tent as tent

from .base import Arm


class CrowdArm(Arm):
    """`grow`, `cost` and `latency` are called by cost.py."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        torch.set_num_threads(1)
        self.peers: list[tuple[int, Connection]] = []
        self.word = torch.arange(8, dtype=torch.uint8)
        self.segment = tent.register(self.word, access="read") if seat.rank == 0 else None
        own = self.segment.ticket() if self.segment is not None else b""
        self.ticket = seat.exchange(own)[0]

    def version(self) -> str:
        """The package's."""
        return f"torch_tent {tent.__version__}"

    def grow(self, count: int) -> int:
        """Rank 1: starts peers until there are `count`; each has read once when it returns."""
        while self.seat.rank == 1 and len(self.peers) < count:
            ours, theirs = Pipe()
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._live(theirs)
            theirs.close()
            if not ours.poll(30) or ours.recv() != "read":
                raise OSError(f"peer {len(self.peers)} did not read")
            self.peers.append((pid, ours))
        return len(self.peers)

    def _live(self, parent: Connection) -> None:
        """A peer: reads once, then does what it is told until the pipe ends."""
        for _, other in self.peers:
            other.close()
        try:
            remote = tent.open(self.ticket)
            word = torch.zeros(8, dtype=torch.uint8)
            tent.read(remote, out=word).wait(20)
            parent.send("read" if torch.equal(word, self.word) else "wrong bytes")
            while (times := parent.recv()) > 0:
                late = []
                for _ in range(times):
                    began = time.monotonic()
                    tent.read(remote, out=word).wait(20)
                    late.append(time.monotonic() - began)
                parent.send(late)
        except EOFError:
            pass
        finally:
            os._exit(0)

    def cost(self) -> dict[str, float]:
        """Rank 0: its threads, descriptors and memory (bytes that nobody shares)."""
        if self.seat.rank == 1:
            return {}
        own = 0
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("Private_Clean", "Private_Dirty"):
                own += int(rest.split()[0]) << 10
        threads = len(os.listdir("/proc/self/task"))
        return {"threads": threads, "bytes": own, "files": len(os.listdir("/proc/self/fd"))}

    def latency(self, times: int) -> list[float]:
        """Rank 1: seconds of each 8-byte read by the first peer."""
        if self.seat.rank == 0:
            return []
        self.peers[0][1].send(times)
        if not self.peers[0][1].poll(30):
            raise OSError("the first peer does not answer")
        found: list[float] = self.peers[0][1].recv()
        return found

    def close(self) -> None:
        """Ends the peers."""
        for pid, pipe in self.peers:
            pipe.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


ARM = CrowdArm
