"""Stage: tests. The demo's child processes: what their parent hears of them, however they end.

Real processes, fresh interpreters as in the demo. Each wait is for a message or an end that must
come, bounded by PATIENCE_S.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import pytest

from torch_tent.demo.children import Child, ChildFailure, Line, ended, wait_for_any
from torch_tent.errors import TransferError

PATIENCE_S = 30.0


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
    children: list[Child] = []
    with ended(children):
        children.append(Child("echo", echo, "hello"))
        kind, pid = hear(children[0])
        assert (kind, pid != os.getpid()) == ("pid", True)
        children[0].tell("go", "world")
        assert hear(children[0]) == ("heard", "hello world")
    assert gone(pid)


def test_a_failure_is_told_with_its_reason() -> None:
    children: list[Child] = []
    with ended(children), pytest.raises(ChildFailure) as caught:
        children.append(Child("prefill", refuse, TransferError("no rail leads there", rail="tcp")))
        hear(children[0])
    assert str(caught.value) == "the prefill process failed: no rail leads there"


def test_an_unexpected_failure_is_told_with_its_place() -> None:
    children: list[Child] = []
    with ended(children), pytest.raises(ChildFailure, match="KeyError: 'lost'\n(.|\n)*in refuse"):
        children.append(Child("decode", refuse, KeyError("lost")))
        hear(children[0])


def test_a_killed_child_is_named() -> None:
    children: list[Child] = []
    with ended(children), pytest.raises(ChildFailure, match="decode process was killed by SIGKILL"):
        children.append(Child("decode", listen))
        _, pid = hear(children[0])
        os.kill(pid, signal.SIGKILL)
        hear(children[0])
    assert gone(pid)


def test_silence_has_an_end() -> None:
    children: list[Child] = []
    with ended(children):
        children.append(Child("decode", listen))
        _, pid = hear(children[0])
        children[0].check_patience(PATIENCE_S)
        with pytest.raises(ChildFailure, match="decode process .* said nothing for 0 s"):
            children[0].check_patience(0)
    assert gone(pid)


def test_a_child_does_not_wait_for_ever() -> None:
    children: list[Child] = []
    with ended(children), pytest.raises(ChildFailure, match="sent no 'never sent' within 0.05 s"):
        children.append(Child("prefill", wait_in_vain))
        hear(children[0])


def test_a_stopped_child_is_ended_by_force() -> None:
    """It reads no message and no SIGTERM; an error of the parent must not wait for it."""
    children: list[Child] = []
    with pytest.raises(RuntimeError, match="the parent's own"), ended(children):
        children.append(Child("decode", listen))
        _, pid = hear(children[0])
        os.kill(pid, signal.SIGSTOP)
        raise RuntimeError("the parent's own")
    assert gone(pid)


def make_a_child(line: Line) -> None:
    """A parent that is killed while its child listens. (A daemon may not have children.)"""
    multiprocessing.process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    child = Child("orphan", listen)
    line.tell("grandchild", hear(child)[1])
    line.hear("never sent", PATIENCE_S)


def test_a_child_ends_when_its_parent_is_killed() -> None:
    children: list[Child] = []
    with ended(children):
        children.append(Child("parent", make_a_child))
        _, orphan = hear(children[0])
        children[0]._process.kill()
        assert gone(orphan)
