"""Stage: demo. The parent's two child processes, and the line between each of them and the parent.

`Child` is used by the parent's main thread, `Line` by the child's. What always holds: a child that
fails says why or is found dead; every wait has an end; when the block of `children` ends, every
child is dead, and a child whose parent is gone ends by itself when it next speaks or listens.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from torch_tent.errors import TentError

END_S = 3.0
PRELOADED = ["torch_tent.demo.model", "torch_tent.demo.prefill", "torch_tent.demo.decode"]

Message = tuple[str, Any]


class ChildFailure(Exception):
    """A child raised, died, or said nothing for too long; the text names it and says why."""


class Line:
    """A child's end: tells the parent what happens, hears what it should do."""

    def __init__(self, connection: Connection[Message, Message]) -> None:
        self._connection = connection

    def tell(self, kind: str, content: Any = None) -> None:
        self._connection.send((kind, content))

    def hear(self, kind: str, timeout: float) -> Any:
        """The next message, which must be of this kind. Raises TimeoutError, EOFError."""
        if not self._connection.poll(timeout):
            raise TimeoutError(f"the parent process sent no {kind!r} within {timeout:g} s")
        got, content = self._connection.recv()
        if got != kind:
            raise RuntimeError(f"the parent process sent {got!r} instead of {kind!r}")
        return content


class Child:
    """The parent's end. Runs `work(line, *args)` in a process of its own.

    Processes come from a fork server, which has done the long imports once for all of them.
    """

    def __init__(self, name: str, work: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_run, args=(theirs, work, args), name=name, daemon=True
        )
        self._process.start()
        theirs.close()
        self._heard_at = time.monotonic()

    def tell(self, kind: str, content: Any = None) -> None:
        try:
            self._connection.send((kind, content))
        except OSError:
            raise ChildFailure(self._obituary()) from None

    def messages(self) -> Iterator[Message]:
        """What it has said, without waiting. Raises ChildFailure when it failed or has died."""
        try:
            while self._connection.poll():
                kind, content = self._connection.recv()
                self._heard_at = time.monotonic()
                if kind == "failed":
                    raise ChildFailure(f"the {self.name} process failed: {content}")
                yield kind, content
        except (EOFError, OSError):
            raise ChildFailure(self._obituary()) from None

    def check_patience(self, seconds: float) -> None:
        """Raises ChildFailure when nothing was heard from it for so long."""
        if time.monotonic() - self._heard_at > seconds:
            raise ChildFailure(
                f"the {self.name} process (pid {self._process.pid}) said nothing for {seconds:g} s"
            )

    def end(self, force: bool = False) -> None:
        """Waits for its end, and makes it end when it does not; with `force` at once."""
        self._connection.close()
        if not force:
            self._process.join(END_S)
        for act in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                act()
                self._process.join(END_S)

    def _obituary(self) -> str:
        self._process.join(END_S)
        code = self._process.exitcode
        how = "hung up" if code is None else f"ended with exit status {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        return f"the {self.name} process {how} before it was done"


def wait_for_any(children: Sequence[Child], timeout: float) -> None:
    """Until one of them has something to say, or `timeout` seconds have passed."""
    wait([child._connection for child in children], timeout)


@contextmanager
def ended(children: list[Child]) -> Iterator[None]:
    """Ends every child that is in the list when the block ends: at once when it ends badly."""
    force = True
    try:
        yield
        force = False
    finally:
        for child in children:
            child.end(force)


def _run(connection: Connection[Message, Message], work: Callable[..., None], args: Any) -> None:
    """A child's life. Only the parent is interrupted from the keyboard: it ends its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = Line(connection)
    try:
        try:
            work(line, *args)
        except TentError as error:
            line.tell("failed", str(error))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            line.tell("failed", f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
    except (EOFError, BrokenPipeError):
        raise SystemExit(1) from None  # The parent has gone: nobody is there to be told.
