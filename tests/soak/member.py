"""Stage: tests, soak. One process of the soak: its engines, a hall for each peer that comes and a
visit to each that lets us in.

Commanded by the parent over a pipe, on this process's main thread; halls and visits have
threads of their own. What always holds: everything that goes wrong is told to the parent, which
knows whether it may.
"""

from __future__ import annotations

import faulthandler
import gc
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import torch
from torch.distributed import TCPStore

import torch_tent as tent
from tests.soak.hall import Hall
from tests.soak.patterns import Quarantine
from tests.soak.visit import Visit
from torch_tent.card import Card

TICK_S = 0.2
PEER_TIMEOUT_S = 15.0
Address = tuple[str, int]
Way = tuple[str, str, int]  # "local" or "rails", the peer, the number of the meeting


class Member:
    """`doors`: where others reach this member by rails (addresses of relays); none: not at all."""

    def __init__(
        self,
        name: str,
        seed: int,
        port: int,
        hosts: Sequence[str],
        doors: Sequence[Address],
        pipe: Connection,
    ) -> None:
        self.name, self._pipe = name, pipe
        self._chance = random.Random(seed)
        self._doors = list(doors)
        self._speaks = threading.Lock()
        self._quarantine = Quarantine()
        self._store = TCPStore("127.0.0.1", port, timeout=timedelta(seconds=30))
        checksum = self._chance.random() < 0.3
        common: dict[str, Any] = {"peer_timeout_s": PEER_TIMEOUT_S, "checksum": checksum}
        self._engines = {"local": tent.Engine(tent.Settings(transports=("shm", "cma"), **common))}
        if doors:
            chosen = tent.Settings(transports=("tcp",), rails=tuple(hosts), **common)
            self._engines["rails"] = tent.Engine(chosen, advertise=self._behind_doors)
        self._halls: dict[Way, Hall] = {}
        self._visits: dict[Way, Visit] = {}
        self._past: Counter[str] = Counter()
        self._rests = False

    def _behind_doors(self, card: Card) -> Card:
        self.say("listens", [(address.host, address.port) for address in card.addresses])
        addresses = tuple(
            msgspec.structs.replace(address, host=host, port=port)
            for address, (host, port) in zip(card.addresses, self._doors, strict=True)
        )
        return msgspec.structs.replace(card, addresses=addresses)

    def say(self, kind: str, *facts: Any) -> None:
        """Tells the parent."""
        with self._speaks:
            self._pipe.send((kind, *facts))

    def run(self) -> None:
        """Obeys the parent until it says that it is over."""
        self.say("up", list(self._engines))
        order = ""
        while order != "leave":
            if self._pipe.poll(TICK_S):
                order, *facts = self._pipe.recv()
                getattr(self, f"_{order}")(*facts)
            self._look()

    # ---- orders --------------------------------------------------------------------------------

    def _came(self, way: str, peer: str, meeting: int) -> None:
        """A peer is there: it gets a hall of its own, and hears of it."""
        engine = self._engines[way]
        name = f"{way} {self.name} {meeting}"
        store = self._store.clone()
        group = engine.join(store, 0, 2, name)
        label = f"{peer} in {self.name} by {way}, meeting {meeting}"
        told = self._teller(meeting)
        hall = Hall(engine, group, lambda: store.check([name]), label, told, self._quarantine)
        self._halls[way, peer, meeting] = hall
        self.say("invites", way, peer, meeting, hall.tickets())

    def _invited(self, way: str, peer: str, meeting: int, tickets: tuple[bytes, bytes]) -> None:
        """A peer has a hall for us."""
        if self._rests:
            return
        engine = self._engines[way]
        # A store waits for one key at a time: a connection for each.
        name = f"{way} {peer} {meeting}"
        store = self._store.clone()
        group = engine.join(store, 1, 2, name)
        store.set(name, "joined")
        label = f"{peer} by {way}, meeting {meeting}"
        told, seed = self._teller(meeting), self._chance.getrandbits(30)
        visit = Visit(engine, group, tickets, label, told, self._quarantine, seed)
        self._visits[way, peer, meeting] = visit

    def _went(self, peer: str) -> None:
        """A peer has died, or has lost us: the meetings with it are over."""
        for rooms in (self._visits, self._halls):
            for way in [way for way in rooms if way[1] == peer]:
                room: Any = rooms.pop(way)
                if isinstance(room, Visit):
                    self._past += room.done + Counter(bytes=room.bytes)
                room.close()
                del room
        gc.collect()  # A visit refers to itself, and its memory is not seen by the collector.

    def _rest(self) -> None:
        """The end begins: no more transfers. Others may still be in our halls."""
        self._rests = True
        for visit in self._visits.values():
            visit.close(peer_stays=True)
        self.say("reached", "rest")

    def _empty(self) -> None:
        """Nobody moves any more."""
        for hall in self._halls.values():
            hall.close()
        time.sleep(1.0)  # for what should not come
        self._look(everything=True)
        self.say("reached", "empty")

    def _leave(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self.say("reached", "leave")

    # ---- news ----------------------------------------------------------------------------------

    def _teller(self, meeting: int) -> Any:
        return lambda kind, text: self.say("trouble", meeting, kind, text)

    def _look(self, everything: bool = False) -> None:
        stray = self._quarantine.check(everything)
        if stray:
            self.say("trouble", 0, "wrong", f"{stray} (P1)")
        total = self._past.copy()
        for visit in self._visits.values():
            total += visit.done + Counter(bytes=visit.bytes)
        total["quarantines"] = self._quarantine.checked
        self.say("counts", dict(total))


def main(pipe: Connection, stacks: str, *facts: Any) -> None:
    """The process: `stacks` names the file where it writes what its threads do, on SIGUSR1."""
    torch.set_num_threads(1)
    with open(stacks, "a") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        faulthandler.enable(file)
        Member(*facts, pipe).run()
        faulthandler.unregister(signal.SIGUSR1)
