"""Stage: tests, soak. `python -m tests.soak --minutes 30 [--seed N]`: three processes move random
bytes for that long, over shared memory and over rails that break, and two of them die again and
again. Every byte is checked; the end says what was done.

The parent starts, breaks and watches the members; its one thread never touches their bytes. The
exit status is 1 when anything was wrong; the seed, printed first, replays the choices (not the
timing).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from tests.soak import member
from tests.soak.faults import RAILS, Faults
from tests.soak.watch import Watch
from torch_tent.demo.rails import Relays

HOSTS = {side: [f"127.9{n}.7.{rail + 1}" for rail in range(RAILS)]
         for n, side in ((1, "near"), (2, "far"))}  # fmt: skip
NAMES, MORTAL = ("near", "far", "beside"), ("far", "beside")
RATE = 60e6  # bytes per second and rail
HANG_S = 120.0  # without any progress of a member that is not stopped
STEP_S = 180.0
# Members take and free blocks of megabytes all the time. By itself glibc soon keeps those in its
# heaps, whose holes look like a leak; with a fixed threshold each goes back when it is freed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_ARENA_MAX": "2"}
TROUBLE_MOST = 20
# In a meeting whose other end was killed, or stopped for longer than peers wait.
# When a hall closes, its receives are cancelled.
EXCUSABLE = {"PeerLostError", "AccessError", "TransferCancelled", "TransferError", "TentError"}


@dataclass
class Actor:
    """A member as the parent sees it."""

    process: BaseProcess
    pipe: Connection
    watch: Watch
    stacks: Path
    ways: set[str] = field(default_factory=set)
    meetings: dict[str, int] = field(default_factory=dict)  # with the others; the last one counts
    stopped: bool = False
    reached: str = ""  # how far it is in ending
    ended: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    moved: float = field(default_factory=time.monotonic)


class Soak:
    """All of it; `run` is the whole."""

    def __init__(self, seed: int, seconds: float, folder: Path) -> None:
        self._seconds, self._folder = seconds, folder
        self._chance = random.Random(seed)
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.soak.member"])
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._relays = Relays(list(zip(HOSTS["near"], HOSTS["far"], strict=True)), RATE)
        self._actors: dict[str, Actor] = {}
        self._incarnations: Counter[str] = Counter()
        self._past: Counter[str] = Counter()
        self._meetings = 0
        self._excused_meetings: set[int] = set()
        self._faults = Faults(self, self._relays, NAMES, MORTAL, random.Random(seed + 1))
        self.troubles: list[str] = []
        self.excused: Counter[str] = Counter()

    def run(self) -> None:
        try:
            self._start_all()
            began = looked = said = time.monotonic()
            while (now := time.monotonic()) < began + self._seconds and not self._too_much():
                self._hear(0.1)
                self._faults.work()
                if now > looked + 1:
                    looked = now
                    self._look()
                if now > said + 60:
                    said = now
                    print(f"{now - began:6.0f} s {self.summary()}", flush=True)
            self._faults.end()
            self._end()
        finally:
            for actor in self._actors.values():
                actor.process.kill()
                actor.process.join()
            self._relays.close()

    def _start_all(self) -> None:
        for name in NAMES:
            self.start(name)
        self._wait_for(lambda actor: bool(actor.ways), "start")

    def _wait_for(self, true: Callable[[Actor], bool], what: str) -> None:
        """Until it is true of all members."""
        deadline = time.monotonic() + STEP_S
        while late := [name for name, actor in self._actors.items() if not true(actor)]:
            if self._too_much():
                return
            if time.monotonic() > deadline:
                stacks = [stack(self._actors[name]) for name in late]
                self._trouble("\n".join([f"{late} did not {what}", *stacks]))
                return
            self._hear(0.1)

    def summary(self) -> str:
        """What was done so far, as JSON."""
        total = sum((actor.counts for actor in self._actors.values()), self._past.copy())
        facts = {
            "verbs": dict(sorted(total.items())),
            "faults": dict(sorted(self._faults.done.items())),
            "excused": dict(sorted(self.excused.items())),
            "holds": self._actors["near"].watch.grown(),
            "troubles": len(self.troubles),
        }
        return json.dumps(facts)

    # ---- Actors: what faults do ----------------------------------------------------------------

    def start(self, name: str) -> None:
        self._incarnations[name] += 1
        ours, theirs = self._context.Pipe()
        stacks = self._folder / f"{name}-{self._incarnations[name]}"
        doors = self._relays.doors(name) if name in HOSTS else []  # type: ignore[arg-type]
        facts = (name, self._chance.getrandbits(30), self._store.port)
        process = self._context.Process(
            target=member.main, args=(theirs, str(stacks), *facts, HOSTS.get(name, []), doors)
        )
        process.start()
        theirs.close()
        self._actors[name] = Actor(process, ours, Watch(process.pid), stacks)

    def stop(self, name: str, for_long: bool = False) -> None:
        """`for_long`: the others will give it up, or it them."""
        self._actors[name].stopped = True
        if for_long:
            self._over(name)
        os.kill(self._actors[name].watch.pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        actor = self._actors[name]
        os.kill(actor.watch.pid, signal.SIGCONT)
        actor.stopped, actor.moved = False, time.monotonic()

    def kill(self, name: str) -> None:
        actor = self._actors[name]
        actor.process.kill()
        actor.process.join()
        self._past += actor.counts
        self._over(name)
        actor.ways.clear()
        actor.meetings.clear()
        actor.ended = True
        for other, each in self._actors.items():
            if other != name and each.ways:
                self._tell(each, "went", name)

    def reunite(self, name: str) -> None:
        if not self.up(name):
            return
        for other, each in self._actors.items():
            if other != name and each.ways:
                self._tell(each, "went", name)
                self._tell(self._actors[name], "went", other)
        self._over(name)
        self._introduce(name)

    def _lost(self, name: str) -> None:
        """A member that nobody killed has died."""
        actor = self._actors[name]
        actor.process.join(5)
        self._trouble(f"{name} died by itself: {actor.process.exitcode}\n{stack(actor)}")
        self.kill(name)

    def _over(self, name: str) -> None:
        """Errors in the present meetings with this member are what must come of it."""
        self._excused_meetings.update(self._actors[name].meetings.values())

    def up(self, name: str) -> bool:
        actor = self._actors[name]
        return bool(actor.ways) and not actor.stopped

    # ---- what members say ----------------------------------------------------------------------

    def _hear(self, seconds: float) -> None:
        pipes = {actor.pipe: name for name, actor in self._actors.items() if not actor.ended}
        for pipe in wait(list(pipes), seconds):
            name = pipes[pipe]  # type: ignore[index]
            try:
                kind, *facts = self._actors[name].pipe.recv()
            except (EOFError, OSError):
                self._lost(name)
                continue
            getattr(self, f"_{kind}")(name, *facts)

    def _listens(self, name: str, addresses: list[tuple[str, int]]) -> None:
        self._relays.lead(name, addresses)  # type: ignore[arg-type]

    def _up(self, name: str, ways: list[str]) -> None:
        self._actors[name].ways = set(ways)
        self._introduce(name)

    def _introduce(self, name: str) -> None:
        actor = self._actors[name]
        for other, each in self._actors.items():
            if other == name or not each.ways:
                continue
            self._meetings += 1
            actor.meetings[other] = each.meetings[name] = self._meetings
            for way in sorted(actor.ways & each.ways):
                self._tell(each, "came", way, name, self._meetings)
                self._tell(actor, "came", way, other, self._meetings)

    def _invites(self, name: str, way: str, guest: str, meeting: int, tickets: Any) -> None:
        if self._actors[guest].meetings.get(name) == meeting:
            self._tell(self._actors[guest], "invited", way, name, meeting, tickets)

    def _trouble(self, name: str, meeting: int = 0, kind: str = "", text: str = "") -> None:
        if kind in EXCUSABLE and meeting in self._excused_meetings:
            self.excused[kind] += 1
            return
        self.troubles.append(f"{name}: {kind}: {text}" if kind else name)
        print(f"TROUBLE {self.troubles[-1]}", flush=True)

    def _counts(self, name: str, counts: dict[str, int]) -> None:
        actor = self._actors[name]
        if Counter(counts) != actor.counts:
            actor.moved = time.monotonic()
        actor.counts = Counter(counts)

    def _reached(self, name: str, order: str) -> None:
        self._actors[name].reached = order
        self._actors[name].ended = order == "leave"

    def _tell(self, actor: Actor, *order: Any) -> None:
        try:
            actor.pipe.send(order)
        except OSError:
            actor.moved = 0.0  # It has died: _hear finds out.

    # ---- what the parent looks at ----------------------------------------------------------------

    def _look(self) -> None:
        now = time.monotonic()
        for name, actor in self._actors.items():
            if actor.ended or actor.stopped:
                continue
            too_much = actor.watch.look()
            if too_much:
                self._trouble(f"{name} holds {too_much}")
            if now > actor.moved + HANG_S:
                actor.moved = now
                self._trouble(f"{name} does not move\n{stack(actor)}")

    def _too_much(self) -> bool:
        return len(self.troubles) >= TROUBLE_MOST

    def _end(self) -> None:
        """Step by step, all together: nobody may miss a peer that has ended already."""
        self._wait_for(lambda actor: bool(actor.ways), "start")
        for order in ("rest", "empty", "leave"):
            for actor in self._actors.values():
                self._tell(actor, order)
            self._wait_for(lambda actor, order=order: actor.reached == order, order)
        for name, actor in self._actors.items():
            actor.process.join(10)
            if actor.process.exitcode != 0 and not self.troubles:
                self._trouble(f"{name} did not end: {actor.process.exitcode}\n{stack(actor)}")
            if leak := actor.watch.leak():
                self._trouble(f"{name} grows: {leak}")


def stack(actor: Actor) -> str:
    """What the threads of a member do."""
    if actor.process.is_alive():
        os.kill(actor.watch.pid, signal.SIGUSR1)
        time.sleep(0.5)
    return actor.stacks.read_text() if actor.stacks.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description="Moves bytes while all fails.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(30))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    before = set(os.listdir("/dev/shm"))
    os.environ.update(ALLOCATOR)  # read by the processes to come
    with tempfile.TemporaryDirectory(prefix="tent-soak-") as folder:
        soak = Soak(chosen.seed, chosen.minutes * 60, Path(folder))
        soak.run()
        print(soak.summary(), flush=True)
    left = {name for name in set(os.listdir("/dev/shm")) - before if "tent" in name}
    if left:
        soak.troubles.append(f"left in shared memory: {sorted(left)}")
    for trouble in soak.troubles:
        print(f"TROUBLE {trouble}")
    return 1 if soak.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
