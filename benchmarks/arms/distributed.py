"""Stage: benchmarks, in a player. The operations of torch.distributed, for whichever backend.

Shared by the arms that have a process group, so that both run the very same calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .base import Arm, BlockSteps, NotOffered, Probe, Steps, Wakes, block_order
from .flow import Flow
from .mixed import Mixed


class DistributedOps(Arm):
    """Point to point and collectives through the default group."""

    def offer_pingpong(self, case: dict[str, Any]) -> Probe:
        """One round trip by dist.send and dist.recv; both sides end with rank 0's content."""
        memory = self.buffer(case)
        x = torch.from_numpy(memory)
        return Steps(
            ping_pong(
                self.seat.rank,
                lambda: dist.send(x, 1 - self.seat.rank),
                lambda: dist.recv(x, 1 - self.seat.rank),
            ),
            memory,
            memory,
        )

    def offer_stream(self, case: dict[str, Any]) -> Probe:
        """dist.send on one side, dist.recv on the other."""
        memory = self.buffer(case)
        x = torch.from_numpy(memory)
        if self.seat.rank == 0:
            return Steps(lambda: dist.send(x, 1), source=memory)
        return Steps(lambda: dist.recv(x, 0), target=memory)

    def offer_parts(self, case: dict[str, Any]) -> Probe:
        """The same bytes as 16 isends at a time: gloo's way over several interfaces."""
        memory = self.buffer(case)
        parts = torch.from_numpy(memory).chunk(16)
        peer = 1 - self.seat.rank
        move = dist.isend if self.seat.rank == 0 else dist.irecv

        def once() -> None:
            works = [move(part, peer, tag=1 + i) for i, part in enumerate(parts)]
            for work in works:
                if work is not None:
                    work.wait()

        return Steps(once, *((memory, None) if self.seat.rank == 0 else (None, memory)))

    def offer_flow(self, case: dict[str, Any]) -> Probe:
        """16 isends at a time, one lot after the other."""
        return Flow(self, self.offer_parts(case), case)

    def tell(self, go: bool) -> bool:
        """Rank 0's word on whether another one follows, at both ends."""
        word = torch.tensor([int(go)], dtype=torch.uint8)
        dist.send(word, 1) if self.seat.rank == 0 else dist.recv(word, 0)
        return bool(word.item())

    def offer_mixed(self, case: dict[str, Any]) -> Probe:
        """Each size in a group of its own; a message is answered with a byte."""
        rank, peer = self.seat.rank, 1 - self.seat.rank

        def lane(size: int) -> Callable[[bool], bool]:
            group = dist.new_group([0, 1])
            x, answer = torch.zeros(size, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)

            def once(more: bool) -> bool:
                if rank == 0:
                    x[0] = int(more)
                    dist.send(x, peer, group)
                    dist.recv(answer, peer, group)
                    return more
                dist.recv(x, peer, group)
                more = bool(x[0])
                dist.send(answer, peer, group)
                return more

            return once

        return Mixed(rank, case, lane(case["small"]), lane(case["bytes"]), passive=False)

    def offer_meet(self, case: dict[str, Any]) -> Probe:
        """A new group of the two, and 8 bytes through it."""
        x = torch.zeros(8, dtype=torch.uint8)

        def once() -> None:
            group = dist.new_group([0, 1])
            if self.seat.rank == 0:
                dist.send(x, 1, group)
            else:
                dist.recv(x, 0, group)

        return Steps(once)

    def offer_packed_blocks(self, case: dict[str, Any]) -> Probe:
        """Blocks gathered into one message, and scattered from it."""
        mine = self.buffer(case)
        pool = torch.from_numpy(mine).view(-1, case["block"])
        index = torch.from_numpy(block_order(case)[self.seat.rank])
        packed = torch.empty(case["count"], case["block"], dtype=torch.uint8)

        def gather() -> None:
            torch.index_select(pool, 0, index, out=packed)
            dist.send(packed, 1)

        def scatter() -> None:
            dist.recv(packed, 0)
            pool.index_copy_(0, index, packed)

        if self.seat.rank == 0:
            return BlockSteps(case, gather, source=mine)
        return BlockSteps(case, scatter, target=mine)

    def offer_wake(self, case: dict[str, Any]) -> Probe:
        """A message of 8 bytes to a sleeping receiver."""
        stamp = np.zeros(1, np.int64)
        x = torch.from_numpy(stamp)
        return Wakes(self.seat.rank, lambda: dist.send(x, 1), lambda: dist.recv(x, 0), stamp)

    def offer_all_reduce(self, case: dict[str, Any]) -> Probe:
        """The sum of every rank's floats."""
        return Collective(self.seat, case["bytes"], "all_reduce")

    def offer_all_gather(self, case: dict[str, Any]) -> Probe:
        """Every rank's share of the bytes, everywhere."""
        return Collective(self.seat, case["bytes"], "all_gather")

    def offer_all_to_all(self, case: dict[str, Any]) -> Probe:
        """Each rank's bytes, an equal part to everybody."""
        return Collective(self.seat, case["bytes"], "all_to_all")

    def offer_broadcast(self, case: dict[str, Any]) -> Probe:
        """Rank 0's bytes, everywhere."""
        return Collective(self.seat, case["bytes"], "broadcast")

    def close(self) -> None:
        """Leaves the group."""
        dist.destroy_process_group()


def ping_pong(rank: int, send: Callable[[], Any], recv: Callable[[], Any]) -> Callable[[], None]:
    """One round trip seen from this rank."""

    def first() -> None:
        send()
        recv()

    def second() -> None:
        recv()
        send()

    return first if rank == 0 else second


class Collective(Probe):
    """One collective on float32, whose result every rank can compute for itself.

    `size` is the bytes of the larger side of one rank: what it ends with.
    """

    def __init__(self, seat: Any, size: int, name: str) -> None:
        super().__init__()
        self.rank, self.world, self.name = seat.rank, seat.world, name
        count = size // 4
        if count % self.world:
            raise NotOffered(f"{size} bytes do not divide among {self.world} ranks")
        share = count // self.world
        self.given = torch.zeros(share if name == "all_gather" else count)
        inplace = name in ("all_reduce", "broadcast")
        self.taken = self.given if inplace else torch.zeros(count)
        self.once = getattr(self, f"_{name}")  # type: ignore[method-assign]
        self.barrier = seat.barrier
        self.times = self.salt = 0

    def _all_reduce(self) -> None:
        dist.all_reduce(self.given)

    def _all_gather(self) -> None:
        dist.all_gather_into_tensor(self.taken, self.given)

    def _all_to_all(self) -> None:
        dist.all_to_all_single(self.taken, self.given)

    def _broadcast(self) -> None:
        dist.broadcast(self.given, 0)

    def run(self, times: int) -> dict[str, Any]:
        """A sum in place grows with each repetition: it starts anew before it is out of range."""
        if self.name != "all_reduce":
            return super().run(times)
        seconds = 0.0
        while times > 0:
            self.fill(self.salt)
            self.times = min(times, 100 // self.world.bit_length())
            times -= self.times
            self.barrier()
            found = super().run(self.times)
            seconds += found["end"] - found["begin"]
        return {"seconds": seconds}

    def fill(self, salt: int) -> None:
        """Small whole numbers, so that every sum is exact."""
        self.salt = salt
        self.given.copy_(self._content(self.rank, salt, len(self.given)))

    def _content(self, rank: int, salt: int, count: int) -> torch.Tensor:
        index = torch.arange(count, dtype=torch.int64)
        return ((index * 7 + rank * 3 + salt) % 5 - 2).to(torch.float32)

    def check(self, salt: int) -> str:
        """Compares with what the ranks' content gives."""
        wanted = self._wanted(salt)
        if torch.equal(self.taken, wanted):
            return ""
        at = int((self.taken != wanted).nonzero()[0])
        return f"{self.name}: element {at} is {self.taken[at]}, not {wanted[at]}"

    def _wanted(self, salt: int) -> torch.Tensor:
        count, ranks = len(self.given), range(self.world)
        if self.name == "broadcast":
            return self._content(0, salt, count)
        if self.name == "all_gather":
            return torch.cat([self._content(rank, salt, count) for rank in ranks])
        if self.name == "all_to_all":
            return torch.cat(
                [self._content(rank, salt, count).chunk(self.world)[self.rank] for rank in ranks]
            )
        total = torch.zeros(count)
        for rank in ranks:
            total += self._content(rank, salt, count)
        return total * float(self.world ** (self.times - 1))

    def pages(self) -> str:
        """torch's own allocation."""
        return "torch"
