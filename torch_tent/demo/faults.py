"""Stage: demo. When which rail breaks and heals in a run, and the record of it.

Driven by the parent's main thread, which commands the relays. What always holds: the record says
what was done, at the moment at which the relay did it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch_tent.demo.rails import Relays
from torch_tent.demo.story import Fault

AT_SHARE = 0.35  # Of the cache, crossed before the fault: amid the prefill and the transfer.
HEALED_AFTER_S = 1.5
SLOWER = 100.0
RAILS_MIN = 2


@dataclass(frozen=True)
class Planned:
    """What is to happen to one rail."""

    rail: int
    what: str
    heals: bool


def planned(kind: str, rails: int) -> list[Planned]:
    """The faults of a run. Cuts are two where enough rails are left: one heals, one stays.

    Raises ValueError where no rail would be left.
    """
    if kind == "none":
        return []
    if rails < RAILS_MIN:
        raise ValueError(
            f"--fault {kind} breaks a rail and needs another one to go on with: use --rails "
            f"{RAILS_MIN} or more, or --fault none"
        )
    found = [Planned(1, kind, heals=True)]
    if kind == "cut" and rails >= 4:
        found.append(Planned(rails - 1, kind, heals=False))
    return found


class Injector:
    """Breaks the rails when enough bytes have crossed, and heals those that are to heal."""

    def __init__(
        self, relays: Relays, plan: list[Planned], bytes_before: float, say: Callable[[str], None]
    ) -> None:
        self._relays = relays
        self._plan = plan
        self._bytes_before = bytes_before
        self._say = say
        self.record: list[Fault] = []

    def step(self, crossed_bytes: float) -> None:
        """Called often. `crossed_bytes` is what has crossed all relays so far."""
        if self._plan and not self.record and crossed_bytes >= self._bytes_before:
            self.record = [self._break(fault) for fault in self._plan]
        for index, (fault, plan) in enumerate(zip(self.record, self._plan, strict=False)):
            due = fault.at_ns + int(HEALED_AFTER_S * 1e9)
            if plan.heals and fault.healed_ns is None and time.monotonic_ns() >= due:
                self.record[index] = replace(fault, healed_ns=self._relays.heal(fault.rail))
                self._say(f"rail {fault.rail + 1} healed")

    def _break(self, fault: Planned) -> Fault:
        acts: dict[str, Callable[[int], int]] = {
            "cut": self._relays.cut,
            "drop": self._relays.drop,
            "slow": lambda rail: self._relays.slow(rail, SLOWER),
        }
        moment = acts[fault.what](fault.rail)
        done = {"cut": "cut", "drop": "dropped silently", "slow": f"slowed {SLOWER:.0f} times"}
        self._say(f"rail {fault.rail + 1} {done[fault.what]}")
        return Fault(fault.rail, fault.what, moment, None)
