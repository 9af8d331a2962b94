"""Stage: benchmarks, in a player. Blocks of paged caches: a part of the torch_tent arm."""

from __future__ import annotations

import time
from typing import Any

import torch

import torch_tent as tent

from .base import Arm, BlockSteps, Probe, block_order


class BlockOps(Arm):
    """Caches of one layer, on rank 0 and rank 1."""

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
