"""P5 and P6 between real processes: a peer that dies is lost at once, a restarted one is another
one, and a process of another user is not let in.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.engines import Node, ended, hear, say
from tests.parties import free_port
from tests.processes import Processes, run_processes
from torch_tent.settings import Settings

TCP = {"transports": ("tcp",), "rails": ("127.0.0.2", "127.0.0.3")}
PATHS = pytest.mark.parametrize("path", [{}, TCP], ids=["local", "tcp"])
TRIES = 5
LOST_S = 0.1  # P5: a peer on the same host that has died is lost within this.


def watch_the_other(rank: int, nprocs: int, folder: str, path: dict[str, object]) -> object:
    with Node(folder, rank, Settings(**path)) as node:  # type: ignore[arg-type]
        peer = node.meet(1 - rank)
        mine, theirs = np.full(1 << 16, rank, np.uint8), np.zeros(1 << 16, np.uint8)
        received, sent = node.recv(peer, theirs), node.send(peer, mine)
        assert ended(received) == ended(sent) == ""
        assert (theirs == 1 - rank).all()
        waiting = node.recv(peer, theirs, tag=1)
        node.say(f"ready-{rank}")
        assert waiting.wait(20.0)
        return time.monotonic(), *waiting.status()


@PATHS
def test_a_killed_peer_is_lost_within_a_tenth_of_a_second(
    tmp_path: Path, path: dict[str, object]
) -> None:
    took_s = []
    for number in range(TRIES):  # Other programs may take the processors for a while.
        folder = tmp_path / str(number)
        folder.mkdir()
        with Processes(watch_the_other, 2, str(folder), path) as children:
            for rank in (0, 1):
                hear(folder, f"ready-{rank}")
            killed = time.monotonic()
            children.send_signal(1, signal.SIGKILL)
            noticed, code, text, _ = children.results(lost=[1])[0]
        assert code == 2, text
        assert "rank 1" in text or "listens" in text
        took_s.append(noticed - killed)
        if took_s[-1] < LOST_S:
            break
    assert min(took_s) < LOST_S, took_s


def talk_to_two_lives(rank: int, nprocs: int, folder: str, path: dict[str, object]) -> list[str]:
    """Rank 0 talks to rank 1, which then ends and lives again with the same addresses."""
    found = []
    with Node(folder, 0, Settings(**path)) as node:  # type: ignore[arg-type]
        for life in (1, 2):
            peer = node.meet(life)
            data = np.zeros(100, np.uint8)
            found.append(ended(node.recv(peer, data)))
            assert (data == life).all()
            node.say(f"heard-{life}")
            found.append(ended(node.recv(peer, data, tag=1)))
    return found


def live(rank: int, nprocs: int, folder: str, path: dict[str, object], life: int) -> None:
    with Node(folder, life, Settings(**path)) as node:  # type: ignore[arg-type]
        assert ended(node.send(node.meet(0), np.full(100, life, np.uint8))) == ""
        node.hear(f"heard-{life}")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_restarted_peer_on_the_same_address_is_another_one(tmp_path: Path) -> None:
    path = {**TCP, "rails": ("127.0.0.2",)}
    lives = {**path, "listen_port": free_port("127.0.0.2")}
    with Processes(talk_to_two_lives, 1, str(tmp_path), path) as survivor:
        for life in (1, 2):
            with Processes(live, 1, str(tmp_path), lives, life) as child:
                child.results(lost=[0])
                hear(tmp_path, f"heard-{life}")
        found = survivor.results()[0]
    assert [text[:2] for text in found] == ["", "2:", "", "2:"], found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@PATHS
def test_a_process_of_another_user_is_refused(path: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory(prefix="tent-test-") as folder:
        os.chmod(folder, 0o777)  # The other user cannot see into pytest's own folders.
        results = run_processes(call_as_nobody, 2, folder, path)
    assert results[0] == "[]"
    assert "of user 0, this is user 65534: set TENT_SECRET" in results[1]


def call_as_nobody(rank: int, nprocs: int, folder: str, path: dict[str, object]) -> str:
    if rank == 1:
        os.setuid(65534)
    with Node(folder, rank, Settings(**path)) as node:  # type: ignore[arg-type]
        if rank == 0:
            node.hear("refused")
            return str(node.engine.stats()["rails"])
        text = ended(node.send(node.meet(0), np.zeros(10, np.uint8)))
        say(Path(folder), "refused")
        return text
