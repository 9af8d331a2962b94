"""Stage: tests, soak. One process of the soak: its engines, a hall for each peer that comes and a
visit to each that lets us in.

Commanded by the parent over a pipe, on this process's main thread; halls and visits have
threads of their own. What always holds: everything that goes wrong is told to the parent, which
knows whether it may.
"""

from __future__ import annotations

import faulthandler
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
Way = tuple[str, str, int]  # "local" or "rails", the peer, its incarnation


class Member:
    """`doors`: where others reach this member by rails (addresses of relays); none: not at all."""

    def __init__(
        self,
        name: str,
        incarnation: int,
        seed: int,
        port: int,
        hosts: Sequence[str],
        doors: Sequence[Address],
        pipe: Connection,
    ) -> None:
        self.name, self.incarnation, self._pipe = name, incarnation, pipe
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

    def _came(self, way: str, peer: str, incarnation: int) -> None:
        """A peer is there: it gets a hall of its own, and hears of it."""
        label = f"{peer}.{incarnation} in {self.name} by {way}"
        told = self._teller(peer)
        engine = self._engines[way]
        name = f"{way} {self.name}.{self.incarnation} {peer}.{incarnation}"
        group = engine.join(self._store.clone(), 0, 2, name)
        hall = Hall(engine, group, label, told, self._quarantine)
        self._halls[way, peer, incarnation] = hall
        self.say("invites", way, peer, incarnation, hall.tickets())

    def _invited(self, way: str, peer: str, incarnation: int, tickets: tuple[bytes, bytes]) -> None:
        """A peer has a hall for us."""
        engine = self._engines[way]
        name = f"{way} {peer}.{incarnation} {self.name}.{self.incarnation}"
        # A store waits for one key at a time: a connection for each.
        group = engine.join(self._store.clone(), 1, 2, name)
        label = f"{peer}.{incarnation} by {way}"
        visit = Visit(
            engine,
            group,
            tickets,
            label,
            self._teller(peer),
            self._quarantine,
            self._chance.getrandbits(30),
        )
        self._visits[way, peer, incarnation] = visit

    def _went(self, peer: str, incarnation: int) -> None:
        """A peer has died."""
        for rooms in (self._visits, self._halls):
            for way in [way for way in rooms if way[1:] == (peer, incarnation)]:
                room: Any = rooms.pop(way)
                if isinstance(room, Visit):
                    self._past += room.done + Counter(bytes=room.bytes)
                room.close()

    def _rest(self) -> None:
        """The end begins: no more transfers. Others may still be in our halls."""
        for visit in self._visits.values():
            visit.close()
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

    def _teller(self, peer: str) -> Any:
        return lambda kind, text: self.say("trouble", peer, kind, text, time.monotonic())

    def _look(self, everything: bool = False) -> None:
        stray = self._quarantine.check(everything)
        if stray:
            self.say("trouble", "", "wrong", f"{stray} (P1)", time.monotonic())
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
