"""Stage: tests. The demo's child processes: what their parent hears of them, however they end.

Real processes, fresh interpreters as in the demo. Each wait is for a message or an end that must
come, bounded by PATIENCE_S.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from torch_tent.demo.children import Child, ChildFailure, Line, ended, wait_for_any
from torch_tent.errors import TransferError

PATIENCE_S = 30.0


@contextmanager
def started(name: str, work: Callable[..., None], *args: Any) -> Iterator[Child]:
    """A child that is ended when the block ends."""
    children: list[Child] = []
    with ended(children):
        children.append(Child(name, work, *args))
        yield children[0]


def hear(child: Child) -> tuple[str, Any]:
    """The child's next message."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        wait_for_any([child], 0.1)
        for message in child.messages():
            return message
    raise AssertionError(f"{child.name} said nothing")


def echo(line: Line, word: str) -> None:
    line.tell("pid", os.getpid())
    line.tell("heard", f"{word} {line.hear('go', PATIENCE_S)}")


def listen(line: Line) -> None:
    line.tell("pid", os.getpid())
    line.hear("never sent", PATIENCE_S)


def refuse(line: Line, error: Exception) -> None:
    raise error


def wait_in_vain(line: Line) -> None:
    line.hear("never sent", 0.05)


def gone(pid: int) -> bool:
    """Whether no process has this id, waiting for its end."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_child_talks_and_ends() -> None:
    with started("echo", echo, "hello") as child:
        kind, pid = hear(child)
        assert kind == "pid"
        assert pid != os.getpid()
        child.tell("go", "world")
        assert hear(child) == ("heard", "hello world")
    assert gone(pid)


def test_a_failure_is_told_with_its_reason() -> None:
    error = TransferError("no rail leads there", rail="tcp")
    with started("prefill", refuse, error) as child, pytest.raises(ChildFailure) as caught:
        hear(child)
    assert str(caught.value) == "the prefill process failed: no rail leads there"


def test_an_unexpected_failure_is_told_with_its_place() -> None:
    with started("decode", refuse, KeyError("lost")) as child, pytest.raises(ChildFailure) as found:
        hear(child)
    assert "KeyError: 'lost'\n" in str(found.value)
    assert "in refuse" in str(found.value)


def test_a_killed_child_is_named() -> None:
    with started("decode", listen) as child:
        _, pid = hear(child)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ChildFailure, match="the decode process was killed by SIGKILL"):
            hear(child)
        with pytest.raises(ChildFailure, match="the decode process was killed by SIGKILL"):
            child.tell("go")
    assert gone(pid)


def test_silence_has_an_end() -> None:
    with started("decode", listen) as child:
        _, pid = hear(child)
        child.check_patience(PATIENCE_S)
        with pytest.raises(ChildFailure, match=f"decode process .pid {pid}. said nothing for 0 s"):
            child.check_patience(0)
        os.kill(pid, signal.SIGKILL)
    assert gone(pid)


def test_a_child_does_not_wait_for_ever() -> None:
    with started("prefill", wait_in_vain) as child, pytest.raises(ChildFailure) as caught:
        hear(child)
    assert "sent no 'never sent' within 0.05 s" in str(caught.value)


def end_badly() -> int:
    """A block that fails while its child is stopped: it reads no message and no SIGTERM."""
    with started("decode", listen) as child:
        _, pid = hear(child)
        os.kill(pid, signal.SIGSTOP)
        raise LookupError(pid)


def test_a_stopped_child_is_ended_by_force() -> None:
    with pytest.raises(LookupError) as caught:
        end_badly()
    assert gone(caught.value.args[0])


def make_a_child(line: Line) -> None:
    """A parent that is killed while its child listens. (A daemon may not have children.)"""
    multiprocessing.process.current_process()._config["daemon"] = False
    child = Child("orphan", listen)
    line.tell("grandchild", hear(child)[1])
    line.hear("never sent", PATIENCE_S)


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with started("parent", make_a_child) as child:
        _, orphan = hear(child)
        child._process.kill()
        assert gone(orphan)
