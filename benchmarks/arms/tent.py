"""Stage: benchmarks, in a player. torch_tent: its verbs, its blocks, and its process group.

The process group is made when an operation needs it; tent.send and tent.recv use a group made from
a store, and one-sided operations only tickets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import torch_tent as tent

from .base import Idle, Probe, Steps, Wakes, keep_going
from .distributed import DistributedOps, ping_pong
from .flow import TracedFlow
from .mixed import Mixed
from .tent_blocks import BlockOps


class TentArm(BlockOps, DistributedOps):
    """The default engine of this process, with the settings of its environment."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        torch.set_num_threads(1)
        self._joined: Any = None

    def version(self) -> str:
        """The package's."""
        return f"torch_tent {tent.__version__}"

    def offer(self, op: str, case: dict[str, Any]) -> Probe:
        """As of every arm; the operations of torch.distributed need the default group."""
        own = f"offer_{op}" in vars(TentArm)
        if not own and hasattr(DistributedOps, f"offer_{op}") and not dist.is_initialized():
            place = f"file://{self.seat.folder}/store"
            dist.init_process_group(
                "tent", init_method=place, rank=self.seat.rank, world_size=self.seat.world
            )
        return super().offer(op, case)

    def buffer(self, case: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Ordinary memory, or tent.empty's with `memory` "shared"."""
        if case.get("memory") == "shared":
            return tent.empty(case["bytes"], torch.uint8).numpy()
        return super().buffer(case)

    def stats(self) -> dict[str, Any]:
        """The counters of this process's engine."""
        return tent.stats()

    # ---- two-sided ---------------------------------------------------------------------------

    def _group(self) -> Any:
        if self._joined is None:
            store = dist.FileStore(f"{self.seat.folder}/join", self.seat.world)
            self._joined = tent.engine().join(store, self.seat.rank, self.seat.world)
        return self._joined

    def offer_message_pingpong(self, case: dict[str, Any]) -> Probe:
        """tent.send and tent.recv, each waited for."""
        memory, group, peer = self.buffer(case), self._group(), 1 - self.seat.rank
        x = torch.from_numpy(memory)
        once = ping_pong(
            self.seat.rank,
            lambda: tent.send(x, peer, group=group).wait(),
            lambda: tent.recv(x, peer, group=group).wait(),
        )
        return Steps(once, memory, memory)

    def offer_message_stream(self, case: dict[str, Any]) -> Probe:
        """tent.send on one side, tent.recv on the other."""
        memory, group = self.buffer(case), self._group()
        x = torch.from_numpy(memory)
        if self.seat.rank == 0:
            return Steps(lambda: tent.send(x, 1, group=group).wait(), source=memory)
        return Steps(lambda: tent.recv(x, 0, group=group).wait(), target=memory)

    def offer_message_wake(self, case: dict[str, Any]) -> Probe:
        """A message of 8 bytes to a sleeping receiver."""
        stamp, group = np.zeros(1, np.int64), self._group()
        x = torch.from_numpy(stamp)
        return Wakes(
            self.seat.rank,
            lambda: tent.send(x, 1, group=group).wait(),
            lambda: tent.recv(x, 0, group=group).wait(),
            stamp,
        )

    # ---- one-sided ---------------------------------------------------------------------------

    def offer_write(self, case: dict[str, Any]) -> Probe:
        """tent.write into rank 1's segment; `depth`: that many on the way at a time."""
        return self._one_sided(case, write=True)

    def offer_read(self, case: dict[str, Any]) -> Probe:
        """tent.read from rank 1's segment; `depth` as for write."""
        return self._one_sided(case, write=False)

    def _one_sided(self, case: dict[str, Any], write: bool) -> Probe:
        memory = self.buffer(case)
        x = torch.from_numpy(memory)
        ticket, close = b"", None
        if self.seat.rank == 1:
            segment = tent.register(x, access="read-write")
            ticket, close = segment.ticket(), segment.close
        ticket = self.seat.exchange(ticket)[1]
        sends = write == (self.seat.rank == 0)
        source, target = (memory, None) if sends else (None, memory)
        if self.seat.rank == 1:
            return Idle(source, target, close)
        remote, require = tent.open(ticket), case.get("require")

        def begin() -> Any:
            if write:
                return tent.write(x, remote, require=require)
            return tent.read(remote, out=x, require=require)

        probe = Steps(lambda: begin().wait(), source, target, True)
        probe.begin = begin
        if case.get("depth"):
            keep_going(probe, case["depth"])
        return probe

    def offer_flow(self, case: dict[str, Any]) -> Probe:
        """Writes, two at a time, with the slice trace."""
        return TracedFlow(self, self._one_sided(case, write=True), case, tent.engine().native)

    def offer_mixed(self, case: dict[str, Any]) -> Probe:
        """Writes: the small ones in the foreground, the large ones in the background."""
        sizes = (case["small"], case["bytes"])
        tensors = [torch.from_numpy(self.buffer(case | {"bytes": size})) for size in sizes]
        segments, tickets = [], [b"", b""]
        if self.seat.rank == 1:
            segments = [tent.register(x, access="write") for x in tensors]
            tickets = [segment.ticket() for segment in segments]
        tickets = self.seat.exchange(tickets)[1]

        def close() -> None:
            for segment in segments:
                segment.close()

        if self.seat.rank == 1:
            return Idle(close=close)
        remotes = [tent.open(ticket) for ticket in tickets]

        def small(more: bool) -> bool:
            tent.write(tensors[0], remotes[0]).wait()
            return more

        def large(more: bool) -> bool:
            tent.write(tensors[1], remotes[1], priority="background").wait()
            return more

        return Mixed(0, case, small, large, passive=True)

    def offer_register(self, case: dict[str, Any]) -> Probe:
        """register, its ticket, and close."""
        if self.seat.rank > 0:
            return Idle()
        memory = self.buffer(case)
        x = torch.from_numpy(memory)

        def once() -> None:
            segment = tent.register(x)
            segment.ticket()
            segment.close()

        return Steps(once, source=memory, passive=True)

    def offer_meet(self, case: dict[str, Any]) -> Probe:
        """Two new engines, a ticket, and a write of 8 bytes."""
        kept: list[Any] = []

        def once() -> None:
            engine = tent.Engine()
            x = torch.zeros(8, dtype=torch.uint8)
            kept.append(engine)
            if self.seat.rank == 1:
                segment = engine.register(x, "write")
                kept.append(segment)
                self.seat.exchange(segment.ticket())
            else:
                ticket = self.seat.exchange(b"")[1]
                engine.write(x, engine.open(ticket)).wait(10)

        def close() -> None:
            for one in reversed(kept):
                one.close()

        return Steps(once, close=close)

    def close(self) -> None:
        """Leaves the group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()


ARM = TentArm
