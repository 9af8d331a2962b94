"""Stage: benchmarks, the parent. Starts each arm's processes, lets the arms take turns, and keeps
what they measured.

Called by the question files, on the main thread. What always holds: within a round every column of
a case is measured once (A B A B over the rounds), each payload is written anew before it and
checked after it, and when `Arms` closes no player is left.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class ArmFailed(Exception):
    """A player raised, died or took too long; its arm is out of the run."""


class Skipped(Exception):
    """The arm is not installed here, or does not offer the operation."""


@dataclass(frozen=True)
class ArmSpec:
    """How to start an arm: module in arms/, number of players, interpreter, environment.

    `prefix`: words before each rank's command (to enter a namespace); `options`: for the arm;
    `start_s`: what its start may take.
    """

    name: str
    module: str
    ranks: int = 2
    python: str = sys.executable
    env: tuple[tuple[str, str], ...] = ()
    prefix: tuple[tuple[str, ...], ...] = ()
    launcher: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    start_s: float = 90.0


@dataclass(frozen=True)
class Column:
    """One measured thing: an operation of an arm. `role` is "ours", "limit" or "peer"."""

    label: str
    arm: str
    op: str
    role: str
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass
class Outcome:
    """What was measured of one column in one case; times are seconds a repetition."""

    column: Column
    pages: str = ""
    repeat: int = 1
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""


class RunningArm:
    """The players of one arm, each in its own process."""

    def __init__(self, spec: ArmSpec, folder: Path) -> None:
        self.spec = spec
        self.version = ""
        place = folder / f"{spec.name.replace(' ', '-')}-{secrets.token_hex(3)}"
        place.mkdir()
        self.prepared: set[str] = set()
        self._players: list[subprocess.Popen[bytes]] = []
        self._seats: list[Connection] = []
        self._log = open(place / "log", "wb")  # noqa: SIM115 (closed in stop)
        try:
            # By path: a Unix socket is not bound to a network namespace. The folder is ours alone.
            with socket.socket(socket.AF_UNIX) as door:
                door.bind(str(place / "door"))
                door.listen(spec.ranks)
                self._launch(str(place / "door"))
                self._seat(door, place, spec.start_s)
            self.version = self.gather(spec.start_s)[0]
        except BaseException:
            self.stop()
            raise

    def _launch(self, address: str) -> None:
        spec = self.spec
        env = dict(os.environ) | {"OMP_NUM_THREADS": "1"} | dict(spec.env)
        for rank in range(1 if spec.launcher else spec.ranks):
            prefix = spec.prefix[rank] if spec.prefix else ()
            words = [*prefix, *spec.launcher, spec.python, str(HERE / "player.py")]
            words += [f"arms.{spec.module}", str(rank), str(spec.ranks), address]
            self._players.append(
                subprocess.Popen(
                    words, env=env, stdout=self._log, stderr=self._log, preexec_fn=_die_with_parent
                )
            )

    def _seat(self, door: socket.socket, place: Path, start_s: float) -> None:
        """Lets every player in; by rank."""
        found: dict[int, Connection] = {}
        deadline = time.monotonic() + start_s
        door.settimeout(0.2)
        while len(found) < self.spec.ranks:
            try:
                accepted, _ = door.accept()
            except TimeoutError:
                ended = any(player.poll() is not None for player in self._players)
                if ended or time.monotonic() > deadline:
                    raise Skipped(f"it did not start: {self.last_words()}") from None
                continue
            accepted.setblocking(True)
            seat = Connection(accepted.detach())
            _, rank = seat.recv()
            found[rank] = seat
        self._seats = [found[rank] for rank in range(self.spec.ranks)]
        for seat in self._seats:
            seat.send(("seat", str(place), dict(self.spec.options)))

    def last_words(self) -> str:
        """The last line that the arm printed."""
        self._log.flush()
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def call(self, verb: str, *arguments: Any, limit_s: float = 120.0) -> list[Any]:
        """Every player carries out one command; their replies by rank."""
        for seat in self._seats:
            self._send(seat, (verb, *arguments))
        return self.gather(limit_s, rest=verb == "run")

    def call_one(self, rank: int, verb: str, *arguments: Any, limit_s: float = 120.0) -> Any:
        """One player alone carries out a command."""
        self._send(self._seats[rank], (verb, *arguments))
        return _value(*self._receive(rank, limit_s))

    def gather(self, limit_s: float, rest: bool = False) -> list[Any]:
        """Collects one reply of each player, passing on what they exchange."""
        replies: dict[int, tuple[str, Any]] = {}
        shared: dict[int, Any] = {}
        deadline = time.monotonic() + limit_s
        while len(replies) < len(self._seats):
            left = [s for rank, s in enumerate(self._seats) if rank not in replies]
            ready = wait(left, max(0.0, deadline - time.monotonic()))
            if not ready and not replies:
                raise ArmFailed(f"no answer within {limit_s:g} s: {self.last_words()}")
            if not ready:
                break  # What the others said tells more.
            for rank in [self._seats.index(seat) for seat in ready]:  # type: ignore[arg-type]
                kind, value = self._receive(rank, 1.0)
                if kind == "exchange":
                    shared[rank] = value
                    continue
                replies[rank] = (kind, value)
                if kind != "done":
                    deadline = min(deadline, time.monotonic() + 2.0)
                if rest and rank == 0:
                    self._tell(("rest",), self._seats[1:])
            if len(shared) == len(self._seats):
                self._tell(("shared", [shared[r] for r in sorted(shared)]), self._seats)
                shared.clear()
        found = {rank: _value(*replies[rank]) for rank in sorted(replies)}
        if len(found) < len(self._seats):
            raise ArmFailed(f"only ranks {sorted(found)} answered within {limit_s:g} s")
        return list(found.values())

    def _tell(self, message: Any, seats: list[Connection]) -> None:
        for seat in seats:
            self._send(seat, message)

    def _send(self, seat: Connection, message: Any) -> None:
        try:
            seat.send(message)
        except OSError:
            raise ArmFailed(f"a player has died: {self.last_words()}") from None

    def _receive(self, rank: int, limit_s: float) -> tuple[str, Any]:
        if not self._seats[rank].poll(limit_s):
            raise ArmFailed(f"no answer within {limit_s:g} s: {self.last_words()}")
        try:
            kind, value = self._seats[rank].recv()
        except (EOFError, OSError):
            raise ArmFailed(f"rank {rank} has died: {self.last_words()}") from None
        return kind, value

    def pids(self) -> list[int]:
        """The processes that were started (the launcher's, where there is one)."""
        return [player.pid for player in self._players]

    def stop(self) -> None:
        """Asks the players to leave, and kills those that do not within a second."""
        for seat in self._seats:
            try:
                seat.send(("leave",))
            except OSError:
                continue
        deadline = time.monotonic() + 1.0
        for player in self._players:
            try:
                player.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                player.terminate() if self.spec.launcher else player.kill()
                player.wait()
        for seat in self._seats:
            seat.close()
        self._log.close()


def _value(kind: str, value: Any) -> Any:
    """What a player replied, or why it did not."""
    if kind in ("missing", "not offered"):
        raise Skipped(value)
    if kind == "error":
        raise ArmFailed(value.strip().splitlines()[-1][:300])
    return value


def _die_with_parent() -> None:
    """In the child, before it becomes the player: no orphan survives the run."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Arms:
    """The arms of a run; those that are missing or fail are named and left out."""

    def __init__(self, specs: Sequence[ArmSpec]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tent-benchmark-")
        self.running: dict[str, RunningArm] = {}
        self.absent: dict[str, str] = {}
        for spec in specs:
            self.start(spec)

    def start(self, spec: ArmSpec) -> None:
        """Starts one arm; when it cannot, `absent` says why."""
        try:
            self.running[spec.name] = RunningArm(spec, Path(self._folder.name))
        except (Skipped, ArmFailed) as why:
            self.drop(spec.name, str(why))

    def stop(self, name: str) -> None:
        """Ends an arm whose part is over."""
        arm = self.running.pop(name, None)
        if arm is not None:
            arm.stop()

    def drop(self, name: str, why: str) -> None:
        """Takes an arm out of the run."""
        self.stop(name)
        self.absent[name] = why
        print(f"skipped: {name}: {why}", file=sys.stderr, flush=True)

    def versions(self) -> dict[str, str]:
        """What is measured, by arm."""
        return {name: arm.version for name, arm in self.running.items()}

    def close(self) -> None:
        """Ends every player."""
        for arm in self.running.values():
            arm.stop()
        self.running.clear()
        self._folder.cleanup()


@contextmanager
def arms(specs: Sequence[ArmSpec]) -> Iterator[Arms]:
    """The arms for the length of a block."""
    found = Arms(specs)
    try:
        yield found
    finally:
        found.close()
