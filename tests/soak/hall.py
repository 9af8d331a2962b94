"""Stage: tests, soak. What a member offers to one incarnation of a peer, and serves: a lot that the
guest fills and reads, a cache that it fills with notice, messages that it sends.

Owned by a member; one thread for notices and one for messages. What always holds: a closed hall's
memory goes to the quarantine, since nothing may land in it any more.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

import torch_tent as tent
from tests.soak.patterns import Quarantine, first_difference, pattern

LOT_BYTES = 4 << 20
LAYERS, BLOCKS, BLOCK_BYTES = 3, 48, 8 << 10
HEADER = 3  # int64: number, size, seed
MESSAGE, PAYLOAD, ANSWER, NOTED = 1, 2, 3, 4  # tags
PAUSE_S = 0.05  # after an error: the peer may be dead, which others will say
WAIT_S = 60.0  # no transfer takes so long, on whatever machine, unless it hangs

Told = Callable[[str, str], None]  # what went wrong: kind, text


def new_layers() -> list[torch.Tensor]:
    """The layers of a cache: keys and values, then blocks."""
    return [torch.zeros(2, BLOCKS, BLOCK_BYTES, dtype=torch.uint8) for _ in range(LAYERS)]


def block_bytes(layers: list[torch.Tensor], blocks: list[int]) -> Any:
    """The bytes of these blocks in all layers, as one line."""
    return torch.cat([layer[:, blocks].reshape(-1) for layer in layers]).numpy()


def fill_blocks(layers: list[torch.Tensor], blocks: list[int], seed: int) -> None:
    """Makes `block_bytes` the line of a seed."""
    size = 2 * len(blocks) * BLOCK_BYTES
    for number, layer in enumerate(layers):
        line = torch.from_numpy(pattern(seed, number * size, size))
        layer[:, blocks] = line.reshape(2, len(blocks), BLOCK_BYTES)


class Hall:
    """For one guest, by one way."""

    def __init__(
        self,
        engine: tent.Engine,
        group: Any,
        guest_is_there: Callable[[], bool],
        label: str,
        told: Told,
        quarantine: Quarantine,
    ) -> None:
        self._group, self._engine = group, engine
        self._guest_is_there, self._met = guest_is_there, False
        self._label, self._told, self._quarantine = label, told, quarantine
        self._lot = torch.zeros(LOT_BYTES, dtype=torch.uint8)
        self._layers = new_layers()
        self._segment = engine.register(self._lot, access="read-write")
        self._cache = tent.KVCache(self._layers, block_dim=1, engine=engine)
        self._closed = False
        self._waits: tent.Transfer | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(serve,), name=f"{serve.__name__} {label}")
            for serve in (self._notices, self._messages)
        ]
        for thread in self._threads:
            thread.start()

    def tickets(self) -> tuple[bytes, bytes]:
        """Of the lot and of the cache."""
        return self._segment.ticket(), self._cache.ticket()

    def close(self) -> None:
        """The guest has gone: nothing may land here any more."""
        self._closed = True
        waits = self._waits
        if waits is not None:
            waits.cancel()
        self._segment.close()
        self._cache.close()
        self._quarantine.add(f"the lot of {self._label}", self._lot)
        for layer in self._layers:
            self._quarantine.add(f"the cache of {self._label}", layer)
        for thread in self._threads:
            thread.join(WAIT_S)
            if thread.is_alive():
                self._told("hang", f"{thread.name} does not end")

    def _run(self, serve: Callable[[], None]) -> None:
        while not self._closed:
            try:
                serve()
            except tent.TentError as error:
                if not self._closed:
                    self._told(type(error).__name__, f"{serve.__name__} {self._label}: {error}")
                    time.sleep(PAUSE_S)
            except BaseException as error:
                self._told("broken", f"{serve.__name__} {self._label}: {error!r}")
                return

    def _notices(self) -> None:
        note = self._cache.wait_notification(0.2)
        if note is None:
            return
        said = json.loads(note.payload)
        blocks, seed = said["blocks"], said["seed"]
        wanted = pattern(seed, 0, LAYERS * 2 * len(blocks) * BLOCK_BYTES)
        wrong = first_difference(block_bytes(self._layers, blocks), wanted)
        if wrong and not self._closed:  # close() fills the memory anew
            self._told("wrong", f"notice {said['number']} by {self._label} (P3): {wrong}")
        answer = torch.tensor([said["number"]])
        self._engine.send(answer, 1, NOTED, group=self._group).wait(WAIT_S)

    def _messages(self) -> None:
        # One that dies on its way never joins the group, and a store waits long for it.
        self._met = self._met or self._guest_is_there()
        if not self._met:
            time.sleep(PAUSE_S)
            return
        header = torch.zeros(HEADER, dtype=torch.int64)
        self._receive(header, MESSAGE)
        if self._closed:
            return
        number, size, seed = header.tolist()
        payload = torch.zeros(size, dtype=torch.uint8)
        self._receive(payload, PAYLOAD)
        wrong = first_difference(payload.numpy(), pattern(seed, 0, size))
        if wrong and not self._closed:
            self._told("wrong", f"message {number} by {self._label}: {wrong}")
        self._engine.send(torch.tensor([number]), 1, ANSWER, group=self._group).wait(WAIT_S)

    def _receive(self, memory: torch.Tensor, tag: int) -> None:
        """Waits without an end: close() cancels it."""
        self._waits = self._engine.recv(memory, 1, tag, group=self._group)
        if self._closed:
            self._waits.cancel()
        try:
            self._waits.wait()
        finally:
            self._waits = None
