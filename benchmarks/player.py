"""Stage: benchmarks. One process of an arm: a loop that does what the harness says.

Started by harness.py as `python player.py MODULE RANK WORLD ADDRESS`, its only thread. What always
holds: between two commands it blocks, so that an arm that is not measured costs nothing.
"""

from __future__ import annotations

import importlib
import mmap
import os
import resource
import socket
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from arms.base import Arm, Missing, NotOffered, Probe


class Seat:
    """A player's place in its arm: rank, world, and a way to the other players.

    Attributes: `rank`, `world`, `folder` (a path that all players of the arm share), `options`.
    """

    def __init__(self, rank: int, world: int, harness: Connection, folder: str, options: Any):
        self.rank = rank
        self.world = world
        self.folder = Path(folder)
        self.options: dict[str, Any] = options
        self._harness = harness
        self._round = 0
        with open(self.folder / "barrier", "a+b") as file:
            file.truncate(64 * world)
            self._words = memoryview(mmap.mmap(file.fileno(), 64 * world)).cast("Q")

    def exchange(self, value: Any) -> list[Any]:
        """Everybody's value by rank; every player of the arm calls it."""
        self._harness.send(("exchange", value))
        found = self._harness.recv()
        return list(found[1])

    def barrier(self) -> None:
        """Returns in all players within a microsecond or so, without any engine's help."""
        self._round += 1
        self._words[8 * self.rank] = self._round
        spins = 0
        while any(self._words[8 * rank] < self._round for rank in range(self.world)):
            spins += 1
            if spins % 64 == 0:
                os.sched_yield()

    def resting(self) -> bool:
        """Whether rank 0 is through, so that a player that only serves can stop."""
        return self._harness.poll()


class Player:
    """Carries out the harness's commands with one arm."""

    def __init__(self, seat: Seat, arm: Arm, harness: Connection) -> None:
        self.seat = seat
        self.arm = arm
        self.harness = harness
        self.probes: dict[str, Probe] = {}

    def loop(self) -> None:
        """Runs commands until "leave" or the harness has gone."""
        while True:
            try:
                verb, *arguments = self.harness.recv()
            except EOFError:
                return
            if verb == "leave":
                self.arm.close()
                self.harness.send(("done", None))
                return
            try:
                value = getattr(self, f"do_{verb}")(*arguments)
                reply = ("done", value)
            except NotOffered as why:
                reply = ("not offered", str(why))
            except Exception:
                reply = ("error", traceback.format_exc())
            self.harness.send(reply)

    def do_prepare(self, label: str, op: str, case: dict[str, Any]) -> str:
        """Makes the memory and connections of a column; the pages it got."""
        self.probes[label] = self.arm.offer(op, case)
        return self.probes[label].pages()

    def do_fill(self, label: str, salt: int) -> None:
        """Writes new content into the source."""
        self.probes[label].fill(salt)

    def do_run(self, label: str, times: int) -> dict[str, Any]:
        """Measures once: begin and end, or samples, and the processor time it took."""
        probe = self.probes[label]
        cpu = _cpu_seconds()
        if self.seat.rank > 0 and probe.passive:
            self.seat.barrier()
            probe.serve(self.seat.resting)
            found: dict[str, Any] = {}
        else:
            self.seat.barrier()
            found = probe.run(times)
        if self.seat.rank > 0:
            self.harness.recv()  # ("rest",)
        found["cpu"] = _cpu_seconds() - cpu
        return found

    def do_check(self, label: str, salt: int) -> str:
        """ "" when the last run left the right bytes, else what is wrong."""
        return self.probes[label].check(salt)

    def do_drop(self, label: str) -> None:
        """Gives a column's memory back."""
        probe = self.probes.pop(label, None)
        if probe is not None:
            probe.close()

    def do_call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Calls a method of the arm, for questions that are not a comparison of times."""
        return getattr(self.arm, name)(*arguments)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Connects, makes the arm, runs the loop."""
    module, rank_text, world, address = sys.argv[1:5]
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", rank_text))
    door = socket.socket(socket.AF_UNIX)
    door.connect(address)
    harness = Connection(door.detach())
    harness.send(("here", rank))
    folder, options = harness.recv()[1:]
    try:
        seat = Seat(rank, int(world), harness, folder, options)
        arm: Arm = importlib.import_module(module).ARM(seat)
    except (Missing, ImportError) as why:
        harness.send(("missing", str(why)))
        return
    except Exception:
        harness.send(("error", traceback.format_exc()))
        return
    harness.send(("done", arm.version()))
    Player(seat, arm, harness).loop()


if __name__ == "__main__":
    sys.setswitchinterval(1e-3)
    main()
    sys.stdout.flush()
    os._exit(0)  # engines that hang at exit must not hold up the run
