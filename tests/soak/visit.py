"""Stage: tests, soak. What a member does in the hall of a peer: random transfers of every kind, on
one thread, until it is told that the peer has gone.

What always holds: `_lot` and `_layers` are what the peer's memory must hold where it is known;
after an error it is not known, and is read again before it counts.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import torch

import torch_tent as tent
from tests.soak import hall
from tests.soak.hall import BLOCK_BYTES, BLOCKS, LAYERS, LOT_BYTES, PAUSE_S, WAIT_S, Told
from tests.soak.patterns import Bytes, Quarantine, first_difference, pattern


class Visit:
    """To one incarnation of a peer, by one way."""

    def __init__(
        self,
        engine: tent.Engine,
        group: Any,
        tickets: tuple[bytes, bytes],
        label: str,
        told: Told,
        quarantine: Quarantine,
        seed: int,
    ) -> None:
        self._engine, self._group = engine, group
        self._label, self._told, self._quarantine = label, told, quarantine
        self._chance = random.Random(seed)
        self._remote: Any = engine.open(tickets[0])
        self._remote_cache: Any = engine.open(tickets[1])
        self._lot: Bytes = np.zeros(LOT_BYTES, np.uint8)
        self._layers = hall.new_layers()
        self._blocks_known = True
        self._lot_known = True
        self._mine = hall.new_layers()
        self._cache = tent.KVCache(self._mine, block_dim=1, engine=engine)
        self._shared = engine.empty(LOT_BYTES // 4, torch.uint8)
        self._number = 0
        self._closed = self._may_cancel = False
        self._waits: tent.Transfer | None = None
        self.done: Counter[str] = Counter()
        self.bytes = 0
        self._verbs = {
            self.write: 6,
            self.read: 6,
            self.write_blocks: 4,
            self.read_blocks: 3,
            self.message: 4,
            self.burst: 2,
            self.stopped_read: 2,
            self.stopped_write: 2,
            self.stopped_recv: 1,
        }
        self._thread = threading.Thread(target=self._run, name=f"visit {label}")
        self._thread.start()

    def close(self, peer_stays: bool = False) -> None:
        """Ends the thread; its present transfer ends by itself. A message only if the peer's hall
        stays open: else nobody may take it or answer, and it is cancelled."""
        self._closed, self._may_cancel = True, not peer_stays
        waits = self._waits
        if waits is not None and self._may_cancel:
            waits.cancel()
        self._thread.join(2 * WAIT_S)
        if self._thread.is_alive():
            self._told("hang", f"the visit to {self._label} does not end")
        self._cache.close()

    def _run(self) -> None:
        while not self._closed:
            verb = self._chance.choices(list(self._verbs), list(self._verbs.values()))[0]
            try:
                if not (self._lot_known and self._blocks_known):
                    self._learn()
                verb()
                self.done[verb.__name__] += 1
            except tent.TentError as error:
                self._lot_known = self._blocks_known = False
                self._told(type(error).__name__, f"{verb.__name__} at {self._label}: {error}")
                time.sleep(PAUSE_S)
            except BaseException as error:
                self._told("broken", f"{verb.__name__} at {self._label}: {error!r}")
                return

    def _learn(self) -> None:
        """After an error: what is in the peer's memory, which must not change any more."""
        before = self._lot
        for _ in range(2):
            before = self._lot.copy()
            self._lot[:] = self._engine.read(self._remote).wait(WAIT_S).numpy()
            time.sleep(PAUSE_S)
        wrong = first_difference(self._lot, before)
        if wrong:
            self._told("wrong", f"the lot at {self._label} changes by itself (P1): {wrong}")
        everything = list(range(BLOCKS))
        self._engine.read_blocks(self._remote_cache, everything, self._cache, everything).wait(
            WAIT_S
        )
        for layer, mine in zip(self._layers, self._mine, strict=True):
            layer.copy_(mine)
        self._lot_known = self._blocks_known = True

    # ---- what is chosen ------------------------------------------------------------------------

    def _span(self, most: int = LOT_BYTES // 4) -> tuple[int, int]:
        size = min(most, int(2 ** self._chance.uniform(0, 20)))
        start = self._chance.randrange(LOT_BYTES - size)
        return start, start + size

    def _options(self) -> dict[str, Any]:
        return {
            "priority": self._chance.choice(["foreground", "foreground", "background"]),
            "deadline": self._chance.choice([None, None, 0.01, 1.0]),
        }

    def _memory(self, size: int) -> torch.Tensor:
        """Memory of one of three kinds: ordinary, with gaps, or mapped by peers."""
        kind = self._chance.randrange(3)
        if kind == 0 and size <= self._shared.numel():
            return self._shared[:size]
        if kind == 1:
            return torch.empty(size * 2, dtype=torch.uint8)[::2]
        return torch.empty(size, dtype=torch.uint8)

    def _source(self, seed: int, size: int) -> torch.Tensor:
        memory = self._memory(size)
        memory.copy_(torch.from_numpy(pattern(seed, 0, size)))
        return memory

    def _seed(self) -> int:
        return self._chance.getrandbits(30)

    def _wrong(self, what: str, found: Any, wanted: Bytes) -> None:
        text = first_difference(np.ascontiguousarray(found), wanted)
        if text:
            self._told("wrong", f"{what} at {self._label}: {text}")

    def _wait(self, message: tent.Transfer) -> None:
        """For a message, which close() may cancel."""
        self._waits = message
        if self._may_cancel:
            message.cancel()
        try:
            message.wait(WAIT_S)
        finally:
            self._waits = None

    # ---- verbs ---------------------------------------------------------------------------------

    def write(self) -> None:
        start, stop = self._span()
        source = self._source(self._seed(), stop - start)
        self._engine.write(source, self._remote[start:stop], **self._options()).wait(WAIT_S)
        self._lot[start:stop] = source.numpy()
        self.bytes += stop - start

    def read(self) -> None:
        start, stop = self._span()
        out = self._memory(stop - start)
        self._engine.read(self._remote[start:stop], out, **self._options()).wait(WAIT_S)
        self._wrong("a read", out.numpy(), self._lot[start:stop])
        self.bytes += stop - start

    def burst(self) -> None:
        """Many transfers at once, awaited: the last writer of a byte is not known, so each has
        bytes of its own."""
        size = self._chance.choice([64, 4096, 60_000])
        starts = self._chance.sample(range(0, LOT_BYTES - size, size), 24)
        sources = [self._source(self._seed(), size).clone() for _ in starts]

        async def all_at_once() -> list[Any]:
            writes = [
                _awaited(self._engine.write(source, self._remote[at : at + size]))
                for at, source in zip(starts, sources, strict=True)
            ]
            return await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), WAIT_S)

        for ended in asyncio.run(all_at_once()):
            if isinstance(ended, BaseException):
                raise ended
        for at, source in zip(starts, sources, strict=True):
            self._lot[at : at + size] = source.numpy()
        self.bytes += size * len(starts)

    def write_blocks(self) -> None:
        blocks = self._chance.sample(range(BLOCKS), self._chance.randint(1, BLOCKS))
        mine = self._chance.sample(range(BLOCKS), len(blocks))
        self._number += 1
        seed = self._seed()
        hall.fill_blocks(self._mine, mine, seed)
        note = json.dumps({"number": self._number, "blocks": blocks, "seed": seed}).encode()
        answer = torch.zeros(1, dtype=torch.int64)
        noted = self._engine.recv(answer, 0, hall.NOTED, group=self._group)
        try:
            self._engine.write_blocks(
                self._cache, mine, self._remote_cache, blocks, notify=note, **self._options()
            ).wait(WAIT_S)
            self._wait(noted)
        finally:
            noted.cancel()
        if int(answer) != self._number:
            self._told("wrong", f"notice {int(answer)} instead of {self._number} (P3)")
        hall.fill_blocks(self._layers, blocks, seed)
        self.bytes += LAYERS * 2 * len(blocks) * BLOCK_BYTES

    def read_blocks(self) -> None:
        blocks = self._chance.sample(range(BLOCKS), self._chance.randint(1, BLOCKS))
        mine = self._chance.sample(range(BLOCKS), len(blocks))
        self._engine.read_blocks(
            self._remote_cache, blocks, self._cache, mine, **self._options()
        ).wait(WAIT_S)
        wanted = hall.block_bytes(self._layers, blocks)
        self._wrong("blocks", hall.block_bytes(self._mine, mine), wanted)
        self.bytes += wanted.size

    def message(self) -> None:
        start, stop = self._span()
        size, seed = stop - start, self._seed()
        self._number += 1
        header = torch.tensor([self._number, size, seed])
        answer = torch.zeros(1, dtype=torch.int64)
        answered = self._engine.recv(answer, 0, hall.ANSWER, group=self._group)
        try:
            self._wait(self._engine.send(header, 0, hall.MESSAGE, group=self._group))
            payload = self._source(seed, size)
            self._wait(self._engine.send(payload, 0, hall.PAYLOAD, group=self._group))
            self._wait(answered)
        finally:
            answered.cancel()
        if int(answer) != self._number:
            self._told("wrong", f"answer {int(answer)} instead of {self._number}")
        self.bytes += size

    # ---- transfers that are stopped (P1) ---------------------------------------------------------

    def stopped_read(self) -> None:
        start, stop = self._span()
        out = torch.empty(stop - start, dtype=torch.uint8)
        remote = self._remote[start:stop]
        if self._stop(lambda timeout: self._engine.read(remote, out, timeout=timeout)):
            self._wrong("a read that ended first", out.numpy(), self._lot[start:stop])
        self._quarantine.add(f"a stopped read at {self._label}", out)

    def stopped_write(self) -> None:
        start, stop = self._span()
        source = torch.from_numpy(pattern(self._seed(), 0, stop - start).copy())
        wanted = source.numpy().copy()
        remote = self._remote[start:stop]
        ended = self._stop(lambda timeout: self._engine.write(source, remote, timeout=timeout))
        source.fill_(0)  # whoever still reads it sends what nobody wrote
        if ended:
            self._lot[start:stop] = wanted
            return
        found = self._engine.read(remote).wait(WAIT_S).numpy()
        strange = int(((found != wanted) & (found != self._lot[start:stop])).sum())
        if strange:
            self._told("wrong", f"{strange} bytes that nobody wrote, at {self._label} (P1)")
        self._lot[start:stop] = found

    def stopped_recv(self) -> None:
        out = torch.empty(self._span()[1] % 10_000 + 1, dtype=torch.uint8)
        never = 1000  # a tag that nobody uses
        group = self._group
        if self._stop(
            lambda timeout: self._engine.recv(out, 0, never, group=group, timeout=timeout)
        ):
            self._told("wrong", f"a message that nobody sent, from {self._label}")
        self._quarantine.add(f"a stopped receive from {self._label}", out)

    def _stop(self, begin: Any) -> bool:
        """Whether the transfer had ended with success before it was cancelled, or timed out."""
        after = self._chance.uniform(0, 0.01)
        if self._chance.random() < 0.5:
            error = begin(max(after, 1e-4)).exception(WAIT_S)
        else:
            transfer = begin(None)
            time.sleep(after)
            transfer.cancel()
            error = transfer.exception(WAIT_S)
        if error is None or isinstance(error, tent.TransferCancelled | tent.TransferTimeout):
            return error is None
        raise error


async def _awaited(transfer: tent.Transfer) -> None:
    await transfer
