"""Stage: api. How the ranks of a new process group meet in its store: each brings a record, and
each gets everybody's.

Called by process_group.py, on the caller's thread. A store may outlive groups and processes: an
elastic agent keeps one while its workers are killed, wherever they are, and started again in other
numbers. What always holds: the records that a meeting gives were brought to this very meeting.

Rank 0 draws a number for each meeting and announces it. A rank may read the number of an earlier
one; but only a living rank 0 answers it, so without an answer it looks for a new number.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore

_ANNOUNCED = "tent/meeting"
_MARK_BYTES = 8
_LOOK_AGAIN_S, _LOOK_AGAIN_S_MAX = 0.01, 0.5
_POLL_S = 0.005
_FOREVER_S = 100 * 365 * 86400.0


@dataclass(frozen=True)
class Meeting:
    """One rank's part in it."""

    store: Any  # torch's types know neither bytes nor has_extended_api
    rank: int
    size: int
    timeout: timedelta
    name: str  # the group's, for people

    def records(self, record: bytes) -> list[bytes]:
        """Brings this rank's record; the records of all ranks, by rank.

        Raises DistStoreError naming the ranks that did not come within the timeout.
        """
        seconds = self.timeout.total_seconds()
        # torch hands the longest of timedeltas on as a negative one.
        deadline = time.monotonic() + (seconds if seconds >= 0 else _FOREVER_S)
        if self.rank == 0:
            return self._call(record, deadline)
        return self._answer(record, deadline)

    def _call(self, record: bytes, deadline: float) -> list[bytes]:
        number = secrets.token_hex(_MARK_BYTES)
        places = self._places(number)
        self.store.set(places[0], bytes(_MARK_BYTES) + record)
        self.store.set(_ANNOUNCED, number)
        if not self._wait_for(places, deadline):
            raise self._alone(places)
        brought = self._read(places)
        records = [each[_MARK_BYTES:] for each in brought]
        # One value: a rank that comes back before the number changes writes to its place again.
        self.store.set(_records_of(number), msgspec.msgpack.encode(records))
        for each in brought[1:]:
            self.store.set(_answer_to(number, each[:_MARK_BYTES]), b"")
        return records

    def _answer(self, record: bytes, deadline: float) -> list[bytes]:
        mark = secrets.token_bytes(_MARK_BYTES)
        pause, number = _LOOK_AGAIN_S, ""
        if not self._wait_for([_ANNOUNCED], deadline):
            raise self._absent("0")
        while True:
            announced = self.store.get(_ANNOUNCED).decode()
            places = self._places(announced)
            if announced != number:
                number, pause = announced, _LOOK_AGAIN_S
                self.store.set(places[self.rank], mark + record)
            look_again = min(deadline, time.monotonic() + pause)
            if self._wait_for([_answer_to(number, mark)], look_again):
                found = self.store.get(_records_of(number))
                return msgspec.msgpack.decode(found, type=list[bytes])
            if look_again == deadline:
                raise self._alone(places)
            pause = min(2 * pause, _LOOK_AGAIN_S_MAX)

    def _places(self, number: str) -> list[str]:
        return [f"tent/{number}/{rank}" for rank in range(self.size)]

    def _wait_for(self, keys: list[str], deadline: float) -> bool:
        """Whether all keys are there before the deadline. Raises what a broken store raises."""
        left = max(0.001, deadline - time.monotonic())
        if left < 1 and _counts_seconds(self.store):
            while not self.store.check(keys):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_S)
            return True
        try:
            self.store.wait(keys, timedelta(seconds=left))
        except RuntimeError:
            return bool(self.store.check(keys))
        return True

    def _read(self, keys: list[str]) -> list[bytes]:
        if self.store.has_extended_api():
            return list(self.store.multi_get(keys))
        return [self.store.get(key) for key in keys]

    def _alone(self, places: list[str]) -> dist.DistStoreError:
        missing = [rank for rank, key in enumerate(places) if not self.store.check([key])]
        # All places are taken: then rank 0's is of an earlier meeting.
        return self._absent(", ".join(map(str, missing or [0])))

    def _absent(self, ranks: str) -> dist.DistStoreError:
        return dist.DistStoreError(
            f"rank {self.rank} of process group {self.name!r} waited "
            f"{self.timeout.total_seconds():g} s, but rank {ranks} did not join it"
        )


def _counts_seconds(store: Any) -> bool:
    """Whether the store waits for whole seconds only: a shorter wait would last one."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return isinstance(store, FileStore)


def _records_of(number: str) -> str:
    return f"tent/{number}/records"


def _answer_to(number: str, mark: bytes) -> str:
    return f"tent/{number}/{mark.hex()}"
