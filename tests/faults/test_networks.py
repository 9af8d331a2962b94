"""Two hosts, played by two network namespaces: they find every network between them by themselves,
and a network that goes away and comes back is left and taken up again.

Needs root and the `ip` command. The namespaces end with the processes that they belong to.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import Node, ended, hear, say
from tests.parties import wait_until
from tests.processes import Processes
from torch_tent import topology
from torch_tent.settings import Settings

CLONE_NEWNET = 0x40000000
SECRET = b"of the two hosts"
NETWORKS = 2
SIZE = 1 << 20
FAILING = "tcp 10.77.0.1>10.77.0.2"
DOWN = {"up": False}
WANTED = {f"tcp 10.77.{n}.1>10.77.{n}.2" for n in range(NETWORKS)}

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and the ip command"
)


def enter_a_namespace(folder: str, rank: int) -> None:
    """A new network namespace for this process, once the test has connected it with the other."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    say(Path(folder), f"alone-{rank}")
    hear(Path(folder), "connected")
    # The kernel tells of a carrier a little later than it is there.
    wait_until(lambda: sum(i.up for i in topology.interfaces() if not i.loopback) == NETWORKS)


def connect(children: Processes, folder: Path) -> None:
    """Joins the namespaces of the two children by networks 10.77.0.0/24, 10.77.1.0/24 ..."""
    for rank in (0, 1):
        hear(folder, f"alone-{rank}")
    for n in range(NETWORKS):
        ends = [str(children.pid(rank)) for rank in (0, 1)]
        first = ["ip", "link", "add", f"rail{n}", "netns", ends[0], "type", "veth"]
        subprocess.run([*first, "peer", "name", f"rail{n}", "netns", ends[1]], check=True)
    for rank in (0, 1):
        inside(children, rank, "link", "set", "lo", "up")
        for n in range(NETWORKS):
            inside(children, rank, "addr", "add", f"10.77.{n}.{rank + 1}/24", "dev", f"rail{n}")
            inside(children, rank, "link", "set", f"rail{n}", "up")
    say(folder, "connected")


def inside(children: Processes, rank: int, *command: str) -> None:
    """Runs ip in a child's namespace."""
    enter = ["nsenter", "-t", str(children.pid(rank)), "-n", "ip"]
    subprocess.run([*enter, *command], check=True, timeout=10.0)


def rails(node: Node) -> dict[str, dict[str, Any]]:
    return {rail["rail"]: rail for rail in node.engine.stats()["rails"]}


def exchange(rank: int, nprocs: int, folder: str) -> Any:
    """Rank 0 sends all the time, until a network was gone and is back; rank 1 receives.

    Returns the errors of rank 0's sends and how long it took until the network was used again,
    and how many messages rank 1 got.
    """
    enter_a_namespace(folder, rank)
    with Node(folder, rank, Settings(secret=SECRET)) as node:
        peer = node.meet(1 - rank)
        if rank == 1:
            return receive(node, peer)
        data = np.random.default_rng(0).integers(0, 255, SIZE, np.uint8)
        errors: list[str] = []

        def send_until(condition: Callable[[], bool]) -> float:
            began = time.monotonic()
            while not condition():
                assert time.monotonic() - began < 15.0, f"it did not happen: {rails(node)}"
                errors.append(ended(node.send(peer, data)))
            return time.monotonic() - began

        send_until(lambda: all(rails(node).get(name, DOWN)["up"] for name in WANTED))
        node.say("go")
        send_until(lambda: not rails(node)[FAILING]["up"])
        made = rails(node)[FAILING]["links_made"]
        node.say("is-down")
        node.hear("is-up")
        healed_s = send_until(lambda: rails(node)[FAILING]["links_made"] > made)
        errors.append(ended(node.send(peer, end := np.zeros(SIZE, np.uint8))))
        assert not end.any()
        return errors, healed_s


def receive(node: Node, peer: int) -> int:
    wanted = np.random.default_rng(0).integers(0, 255, SIZE, np.uint8)
    data = np.zeros(SIZE, np.uint8)
    count = 0
    while ended(node.recv(peer, data)) == "" and data.any():
        assert np.array_equal(data, wanted)
        data[:] = 0
        count += 1
    return count


def test_all_networks_are_found_and_one_that_fails_is_healed(tmp_path: Path) -> None:
    with Processes(exchange, 2, str(tmp_path)) as children:
        connect(children, tmp_path)
        hear(tmp_path, "go")
        inside(children, 0, "link", "set", "rail0", "down")
        hear(tmp_path, "is-down")
        inside(children, 0, "link", "set", "rail0", "up")
        say(tmp_path, "is-up")
        (errors, healed_s), received = children.results(40.0)
    assert set(errors) == {""}
    assert received == len(errors) - 1
    assert healed_s < 1.0
