"""Stage: tests. Runs a function in several processes under a hard time limit, and ends them always.

Called by tests, on their own thread. Children come from a fork server that has imported torch
once, so that each starts in some ten milliseconds instead of seconds; with `fresh=True` they are
new interpreters, which also shut down as a program does. What always holds: when `run_processes`
returns or raises, or the block of `Processes` ends, every child is dead, killed by its pid where
necessary.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ["torch", "torch_tent", "pytest"]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
STOPS_S = 10.0


class ChildError(Exception):
    """A child raised, died, or did not end in time; the message holds its traceback."""


def run_processes(
    function: Callable[..., Any],
    nprocs: int,
    *args: Any,
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> list[Any]:
    """Calls `function(rank, nprocs, *args)` in `nprocs` processes; returns the results by rank.

    `function` is one that a module defines; arguments and results are pickled by value. `env` is
    added to the children's environment (the fork server does not see later changes of ours).
    Raises ChildError with the child's traceback when one raises or dies, and with the stacks of
    those that still run after `timeout` seconds.
    """
    with Processes(function, nprocs, *args, env=env, fresh=fresh) as children:
        return children.results(timeout)


class Processes:
    """Several running children, for tests that stop or kill some of them on the way."""

    def __init__(
        self,
        function: Callable[..., Any],
        nprocs: int,
        *args: Any,
        env: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> None:
        context: Any = multiprocessing.get_context("spawn" if fresh else "forkserver")
        if not fresh:
            multiprocessing.set_forkserver_preload(PRELOADED)
        # By value: torch's own pickling would pass tensors through shared memory of its own.
        call = pickle.dumps((function, nprocs, args))
        self._folder = tempfile.TemporaryDirectory(prefix="tent-test-")
        self._stacks = [Path(self._folder.name) / f"rank-{rank}" for rank in range(nprocs)]
        self._children: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        for rank in range(nprocs):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(
                target=_run_child,
                args=(call, rank, theirs, str(self._stacks[rank]), dict(env or {}), not fresh),
            )
            child.start()
            theirs.close()
            self._children.append(child)
            self._pipes.append(ours)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def pid(self, rank: int) -> int:
        """The process id of one child."""
        pid = self._children[rank].pid
        assert pid is not None
        return pid

    def send_signal(self, rank: int, number: int) -> None:
        """Sends one child a signal, as SIGKILL, SIGSTOP or SIGCONT.

        After SIGSTOP waits until all its threads stand still: they go on for a while where the
        machine is busy, and what they still begin would be part of the test.
        """
        os.kill(self.pid(rank), number)
        deadline = time.monotonic() + STOPS_S
        while number == signal.SIGSTOP and not _stands_still(self.pid(rank)):
            if time.monotonic() > deadline:
                raise ChildError(f"rank {rank} still runs {STOPS_S} s after SIGSTOP")
            time.sleep(0.001)

    def results(self, timeout: float = 30.0, lost: Collection[int] = ()) -> list[Any]:
        """Waits for all children and returns their results by rank.

        Ranks in `lost` may die or stay stopped: they are not waited for, and their result is None.
        """
        deadline = time.monotonic() + timeout
        awaited = {self._pipes[rank]: rank for rank in range(len(self._pipes)) if rank not in lost}
        results: list[Any] = [None] * len(self._pipes)
        errors: dict[int, str] = {}
        while awaited:
            ready = wait(list(awaited), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = awaited.pop(pipe)
                error, results[rank] = self._receive(rank)
                if error:
                    errors[rank] = error
                    # The others often fail because of this one: hear them, but not for long.
                    deadline = min(deadline, time.monotonic() + 1.0)
        if not errors:
            errors = self._exit_errors(deadline, set(awaited.values()) | set(lost))
        if errors or awaited:
            raise ChildError(self._message(errors, sorted(awaited.values()), timeout))
        return results

    def close(self) -> None:
        """Kills what still runs, and waits until it is gone."""
        for child in self._children:
            if child.is_alive():
                child.kill()
        for child, pipe in zip(self._children, self._pipes, strict=True):
            child.join()
            pipe.close()
        self._folder.cleanup()

    def _receive(self, rank: int) -> tuple[str, Any]:
        """One child's (error, result); its pipe has something to read, or has ended."""
        try:
            error, result = pickle.loads(self._pipes[rank].recv_bytes())
        except EOFError:
            self._children[rank].join(1.0)
            return f"it died before it returned: {self._ending(rank)}", None
        return error, result

    def _exit_errors(self, deadline: float, spared: set[int]) -> dict[int, str]:
        """What went wrong after the function had returned: a crash or a hang at exit."""
        errors = {}
        for rank, child in enumerate(self._children):
            if rank in spared:
                continue
            child.join(max(0.0, deadline - time.monotonic()))
            if child.exitcode != 0:
                stack = self._stack(rank) if child.exitcode is None else ""
                errors[rank] = f"it returned, but then: {self._ending(rank)}\n{stack}"
        return errors

    def _ending(self, rank: int) -> str:
        code = self._children[rank].exitcode
        if code is None:
            return "it did not end"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _message(self, errors: Mapping[int, str], running: list[int], timeout: float) -> str:
        parts = [f"rank {rank}: {error}" for rank, error in sorted(errors.items())]
        why = "when another failed" if errors else f"after {timeout:g} s"
        parts += [f"rank {rank}: still ran {why}, at\n{self._stack(rank)}" for rank in running]
        return "\n".join(parts)

    def _stack(self, rank: int) -> str:
        """Where a running child is: all its Python threads, even those inside native code."""
        child = self._children[rank]
        if child.is_alive():
            os.kill(self.pid(rank), signal.SIGUSR1)
            time.sleep(0.2)
        text = self._stacks[rank].read_text() if self._stacks[rank].exists() else ""
        return text or "(it did not say: it is stopped, or has not started)"


def _run_child(
    call: bytes, rank: int, pipe: Connection, stack_path: str, env: Mapping[str, str], forked: bool
) -> None:
    """The child: calls the function and sends (error, result) back."""
    # A test process that is killed takes its children with it, whatever they are doing.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(stack_path, "w") as stack_file:
        faulthandler.register(signal.SIGUSR1, file=stack_file, all_threads=True)
        os.environ.update(env)
        try:
            function, nprocs, args = pickle.loads(call)
            reply = pickle.dumps(("", function(rank, nprocs, *args)))
        except BaseException:
            reply = pickle.dumps((traceback.format_exc(), None))
        pipe.send_bytes(reply)
        pipe.close()
        if forked:
            # A forked child leaves without its exit hooks, unlike the programs it stands for.
            atexit._run_exitfuncs()
        faulthandler.unregister(signal.SIGUSR1)


def _stands_still(pid: int) -> bool:
    """Whether every thread of a process is stopped, or has ended."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # It has ended.
            if stat.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return False
    return True
