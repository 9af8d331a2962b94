"""Stage: benchmarks, in a player. torch_tent: its verbs, its blocks, and its process group.

The process group is made when an operation needs it; tent.send and tent.recv use a group made from
a store, and one-sided operations only tickets.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import torch_tent as tent

from .base import Arm, BlockSteps, Idle, Probe, Steps, Wakes, block_order
from .distributed import DistributedOps, ping_pong
from .flow import Flow


class TentArm(DistributedOps, Arm):
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
        """tent.write into rank 1's segment."""
        return self._one_sided(case, write=True)

    def offer_read(self, case: dict[str, Any]) -> Probe:
        """tent.read from rank 1's segment."""
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
        remote = tent.open(ticket)
        if write:
            probe = Steps(lambda: tent.write(x, remote).wait(), source, target, True)
            probe.begin = lambda: tent.write(x, remote)
            return probe
        return Steps(lambda: tent.read(remote, out=x).wait(), source, target, True)

    def offer_flow(self, case: dict[str, Any]) -> Probe:
        """Writes, two at a time, with the slice trace."""
        return TracedFlow(self, self._one_sided(case, write=True), case)

    # ---- blocks ------------------------------------------------------------------------------

    def offer_write_blocks(self, case: dict[str, Any]) -> Probe:
        """tent.write_blocks, from arrays of indices."""
        return self._blocks(case, write=True)

    def offer_read_blocks(self, case: dict[str, Any]) -> Probe:
        """tent.read_blocks, from arrays of indices."""
        return self._blocks(case, write=False)

    def offer_submit_blocks(self, case: dict[str, Any]) -> Probe:
        """The call alone: how long until write_blocks returns, and until its first slice leaves."""
        return self._blocks(case, write=True, only_call=True)

    def _blocks(self, case: dict[str, Any], write: bool, only_call: bool = False) -> Probe:
        memory = self.buffer(case)
        cache = tent.KVCache([torch.from_numpy(memory).view(-1, case["block"])], block_dim=0)
        ticket = self.seat.exchange(cache.ticket() if self.seat.rank == 1 else b"")[1]
        sends = write == (self.seat.rank == 0)
        kept: dict[str, Any] = {"source" if sends else "target": memory, "passive": True}
        if self.seat.rank == 1:
            return BlockSteps(case, lambda: None, close=cache.close, **kept)
        remote = tent.open(ticket)
        if only_call:
            return Submissions(case, cache, remote, memory)
        source, place = block_order(case)

        def once() -> None:
            if write:
                tent.write_blocks(cache, source, remote, place).wait()
            else:
                tent.read_blocks(remote, source, cache, place).wait()

        return BlockSteps(case, once, close=cache.close, **kept)

    def close(self) -> None:
        """Leaves the group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()


class TracedFlow(Flow):
    """Two writes on the way at any time; bytes count when their slice was acknowledged."""

    def run(self, times: int) -> dict[str, Any]:
        """As of every flow; the rail is the slice's."""
        native = tent.engine().native
        native.trace(True)
        native.take_trace()
        slices: list[Any] = []
        error = ""
        begin = time.monotonic()
        going = []
        try:
            while time.monotonic() < begin + self.case["seconds"]:
                going.append(self.one.begin())  # type: ignore[attr-defined]
                if len(going) == 2:
                    going.pop(0).wait()
                slices += native.take_trace()
            for transfer in going:
                transfer.wait()
        except tent.TentError as why:
            error = f"{type(why).__name__}: {why}"[:200]
        slices += native.take_trace()
        native.trace(False)
        acked = sorted((entry[6], entry[4], entry[2]) for entry in slices if entry[7])
        return self.report(begin, [(at * 1e-9, size, rail) for at, size, rail in acked], error)


class Submissions(BlockSteps):
    """Times the call of write_blocks, and with the slice trace when its first slice was posted."""

    def __init__(self, case: dict[str, Any], cache: Any, remote: Any, source: Any) -> None:
        super().__init__(case, lambda: None, source=source, passive=True)
        self.cache = cache
        self.remote = remote
        self.order = block_order(case)

    def run(self, times: int) -> dict[str, Any]:
        """The calls as samples; in `notes` the seconds from a call to its first slice."""
        native = tent.engine().native
        native.trace(True)
        calls, first = [], []
        for _ in range(times):
            native.take_trace()
            began = time.monotonic_ns()
            transfer = tent.write_blocks(self.cache, self.order[0], self.remote, self.order[1])
            calls.append((time.monotonic_ns() - began) * 1e-9)
            transfer.wait()
            posted = [entry[5] for entry in native.take_trace()]
            first.append((min(posted) - began) * 1e-9)
        native.trace(False)
        return {"samples": calls, "notes": {"first_slice_s": first}}


ARM = TentArm
