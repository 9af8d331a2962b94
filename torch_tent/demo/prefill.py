"""Stage: demo. The prefill process: computes the prompt's cache, and sends every layer of every
chunk as soon as it is there, while it goes on computing.

Runs in a child process, on its main thread; the engine's threads move the bytes meanwhile. What
always holds: a block is written once, and never changed after its write has begun.
"""

from __future__ import annotations

import time

import torch

import torch_tent as tent
from torch_tent.demo.children import Line
from torch_tent.demo.doors import engine_behind
from torch_tent.demo.model import build, digest_of, empty_pages, paged_cache, prefill
from torch_tent.demo.plan import PATIENCE_S, THREADS, TRANSFER_S_MAX, Plan, note_of
from torch_tent.demo.prompt import Chunk, Shape
from torch_tent.demo.told import Prefilled, Sent


def work(line: Line, plan: Plan) -> None:
    """The process. Hears "open" (ticket, block table); tells "began", "computed", "done"."""
    shape = plan.shape
    torch.set_num_threads(THREADS)
    model = build(shape)
    blocks = shape.blocks(len(plan.prompt))
    pages = empty_pages(shape, blocks)
    engine = engine_behind(line, plan, "prefill")
    engine.native.trace(True)
    try:
        with tent.KVCache(pages, block_dim=1, engine=engine) as cache:
            line.tell("ready")
            ticket, table = line.hear("open", PATIENCE_S)
            remote = engine.open(ticket)
            if not isinstance(remote, tent.RemoteCache):
                raise TypeError(f"the ticket is of {remote!r}, not of a cache")
            sender = Sender(engine, cache, remote, torch.tensor(table), shape)
            began_ns = time.monotonic_ns()
            line.tell("began", began_ns)
            paged = paged_cache(pages, torch.arange(blocks))
            for chunk in prefill(model, plan.prompt, shape, paged, sender.send):
                line.tell("computed", (chunk.last - chunk.first) * shape.token_bytes)
            prefilled_ns = time.monotonic_ns()
            sent = sender.finish()
            found = Prefilled(
                began_ns=began_ns,
                prefilled_ns=prefilled_ns,
                sent=sent,
                trace=engine.native.take_trace(),
                fences=engine.native.stats()["transfers"]["fences"],
                digest=digest_of(paged),
            )
            line.tell("done", found)
            line.hear("end", PATIENCE_S)
    finally:
        engine.close()


class Sender:
    """Begins one `write_blocks` for each layer of each chunk, and waits for all at the end."""

    def __init__(
        self,
        engine: tent.Engine,
        cache: tent.KVCache,
        remote: tent.RemoteCache,
        table: torch.Tensor,
        shape: Shape,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._remote = remote
        self._table = table
        self._shape = shape
        self._writes: list[tuple[Chunk, int, int, tent.Transfer]] = []
        self._ended_ns: dict[int, int] = {}

    def send(self, chunk: Chunk, layer: int) -> None:
        """Called when the chunk's keys and values of the layer are in the cache. Never waits."""
        first, last = self._shape.blocks(chunk.first), self._shape.blocks(chunk.last)
        place = len(self._writes)
        began_ns = time.monotonic_ns()
        transfer = self._engine.write_blocks(
            self._cache,
            range(first, last),
            self._remote,
            self._table[first:last],
            layers=[layer],
            notify=note_of(chunk.index, layer),
            require="tcp",
            timeout=TRANSFER_S_MAX,
            deadline=TRANSFER_S_MAX,  # What was computed first goes first.
        )
        self._writes.append((chunk, layer, began_ns, transfer))
        transfer.add_done_callback(lambda _: self._ended_ns.update({place: time.monotonic_ns()}))

    def finish(self) -> list[Sent]:
        """Waits for every write. Raises the error of the first that failed."""
        found = []
        for place, (chunk, layer, began_ns, transfer) in enumerate(self._writes):
            transfer.wait(TRANSFER_S_MAX)
            ended_ns = self._ended_ns.get(place, time.monotonic_ns())
            size = transfer.report()["bytes"]
            found.append(Sent(chunk.index, layer, size, began_ns, ended_ns))
        return found
