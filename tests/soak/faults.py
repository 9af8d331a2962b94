"""Stage: tests, soak. What is done to links and processes, and when.

Used by the parent's only thread. What always holds: rail 0 is never cut, since a peer that all
addresses refuse is a dead one, nor silent for longer than a peer waits; and one member is never
killed, so that leaks show in it.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tests.soak.member import PEER_TIMEOUT_S
from torch_tent.demo.rails import Relays

RAILS = 3
MEAN_PAUSE_S = 1.5
REUNION_S = 5.0


class Actors(Protocol):
    """What faults do to processes."""

    def stop(self, name: str, for_long: bool = False) -> None: ...
    def go_on(self, name: str) -> None: ...
    def kill(self, name: str) -> None: ...
    def start(self, name: str) -> None: ...
    def reunite(self, name: str) -> None: ...
    def up(self, name: str) -> bool:
        """Whether it runs, and is not stopped."""


@dataclass
class Faults:
    """`mortal`: those that may be killed; `names`: all members."""

    actors: Actors
    relays: Relays
    names: tuple[str, ...]
    mortal: tuple[str, ...]
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    _later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    _next: float = field(default_factory=time.monotonic)

    def work(self) -> None:
        """Does what is due."""
        now = time.monotonic()
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)
            entry[1]()
        if now < self._next:
            return
        self._next = now + self.chance.expovariate(1 / MEAN_PAUSE_S)
        kinds = {
            self.rail: 10,
            self.all_rails: 1,
            self.pause: 4,
            self.long_stop: 0.3,
            self.death: 2,
        }
        self.done[self.chance.choices(list(kinds), list(kinds.values()))[0]()] += 1

    def end(self) -> None:
        """Undoes all: what is stopped goes on, what is broken heals."""
        for _, act in self._later:
            act()
        self._later.clear()
        for rail in range(RAILS):
            self.relays.heal(rail)

    def rail(self) -> str:
        rail = self.chance.randrange(1, RAILS)
        fault = self.chance.choice(["cut", "drop", "slow", "heal", "heal"])
        if fault == "slow":
            self.relays.slow(rail, self.chance.choice([3, 30, 300]))
        else:
            getattr(self.relays, fault)(rail)
        return f"rail {fault}"

    def all_rails(self) -> str:
        for rail in range(RAILS):
            self.relays.drop(rail)
            self._at(self.chance.uniform(0.2, 2.0), lambda rail=rail: self.relays.heal(rail))
        return "all rails drop"

    def pause(self) -> str:
        name = self.chance.choice(self.names)
        if not self.actors.up(name):
            return "none"
        self.actors.stop(name)
        self._at(self.chance.uniform(0.05, 1.5), lambda: self.actors.go_on(name))
        return "pause"

    def long_stop(self) -> str:
        name = self.chance.choice(self.mortal)
        if not self.actors.up(name):
            return "none"
        seconds = PEER_TIMEOUT_S + self.chance.uniform(1, 6)
        self.actors.stop(name, for_long=True)
        self._at(seconds, lambda: self.actors.go_on(name))
        # The others have given it up, and what was opened stays lost: they must meet again. If it
        # has died and come back meanwhile, that ends meetings in the middle, which is worth a try.
        self._at(seconds + REUNION_S, lambda: self.actors.reunite(name))
        return "long stop"

    def death(self) -> str:
        name = self.chance.choice(self.mortal)
        if not self.actors.up(name):
            return "none"
        self.actors.kill(name)
        self._at(self.chance.uniform(0, 2.0), lambda: self.actors.start(name))
        return "death"

    def _at(self, seconds: float, act: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, act))
