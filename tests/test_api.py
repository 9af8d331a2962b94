"""Tests of torch_tent's public face: its names, its cost, its promises between real processes."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.pairs import WAIT_S
from tests.processes import run_processes

VERBS = ("send", "recv", "write", "read", "write_blocks", "read_blocks")

IMPORT = """
import os, sys, threading, time
import torch
asked = []
real = type(os.environ).__getitem__
type(os.environ).__getitem__ = lambda self, key: asked.append(key) or real(self, key)
before = len(os.listdir("/proc/self/task"))
began = time.perf_counter()
import torch_tent
seconds = time.perf_counter() - began
assert not [key for key in asked if key.startswith("TENT")], asked
assert len(os.listdir("/proc/self/task")) == before
assert "torch_tent._engine" not in sys.modules
print(seconds)
"""


def test_an_import_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.030


def test_every_public_name_is_there_and_documented() -> None:
    for name in tent.__all__:
        found = getattr(tent, name)
        assert name in dir(tent)
        assert inspect.getdoc(found), name
    for name in ("send", "recv", "engine", "Engine", "KVCache", "TransferTimeout", "Settings"):
        assert name in tent.__all__
    with pytest.raises(AttributeError, match="no attribute 'sned'"):
        _ = tent.sned
    # Importing the modules must not hide a function behind a module of its name.
    import torch_tent.api
    import torch_tent.engines

    assert callable(tent.engine)
    assert callable(torch_tent.open)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_takes_the_same_options_everywhere(name: str) -> None:
    function = inspect.signature(getattr(tent, name))
    method = inspect.signature(getattr(tent.Engine, name))
    assert list(function.parameters.values()) == list(method.parameters.values())[1:]
    options = [p for p in function.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert [p.name for p in options][-4:] == ["priority", "timeout", "deadline", "require"]
    assert [p.default for p in options][-4:] == ["foreground", None, None, None]


def test_errors_are_a_family() -> None:
    for error in (tent.PeerLostError, tent.AccessError, tent.TransferTimeout):
        assert issubclass(error, tent.TransferError)
    assert issubclass(tent.TransferCancelled, tent.TransferError)
    assert issubclass(tent.TransferError, tent.TentError)
    assert issubclass(tent.TransferTimeout, TimeoutError)


def test_verbs_without_a_group_or_a_remote_say_so() -> None:
    for call in (lambda: tent.send(torch.ones(1), 1), lambda: tent.recv(torch.ones(1))):
        with pytest.raises(tent.TentError, match=r"init_process_group.*ticket"):
            call()
    with pytest.raises(TypeError, match="what open"):
        tent.write(torch.ones(1), torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="KVCache"):
        tent.write_blocks(None, [0], None, [0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="what open"):
        tent.read(None)  # type: ignore[arg-type]
    tent.engine().close()


def owner(pipe: Connection) -> list[bytes]:
    """Shares a tensor and a cache, and says what became of them."""
    memory = tent.empty((8, 4))
    cache = tent.KVCache([torch.zeros(2, 16, 5) for _ in range(3)], block_dim=1)
    pipe.send_bytes(tent.register(memory, "read-write").ticket())
    pipe.send_bytes(cache.ticket())
    found = []
    while len(found) < 4:
        note = cache.wait_notification(WAIT_S)
        assert note is not None
        number = int(note.payload)
        assert all(layer[:, number].eq(number).all() for layer in cache.layers)
        found.append(note.payload)
    assert memory[3:7].eq(1).all()
    assert memory[:3].eq(0).all()
    pipe.send_bytes(b"seen")
    assert pipe.recv_bytes() == b"bye"
    return found


def guest(pipe: Connection) -> None:
    """Writes into them and reads back; the owner's Python only waits for notices."""
    remote: Any = tent.open(pipe.recv_bytes())
    there: Any = tent.open(pipe.recv_bytes())
    tent.write(torch.ones(4, 4), remote[3:7]).wait(WAIT_S)
    x = torch.zeros(2, 4)
    assert tent.read(remote[6:], out=x).wait(WAIT_S) is x
    assert x.tolist() == [[1] * 4, [0] * 4]
    here = tent.KVCache([torch.zeros(2, 16, 5) for _ in range(3)], block_dim=1)
    for layer in here.layers:
        layer += torch.arange(16).view(1, 16, 1)
    for number in (3, 15, 0, 8):
        tent.write_blocks(here, [number], there, [number], notify=b"%d" % number)
    assert pipe.recv_bytes() == b"seen"
    back = tent.KVCache([torch.zeros(2, 16, 5) for _ in range(3)], block_dim=1)
    tent.read_blocks(there, [15, 3], back, [1, 2]).wait(WAIT_S)
    assert [back.layers[1][:, n].unique().tolist() for n in (1, 2)] == [[15], [3]]
    pipe.send_bytes(b"bye")


def one_of_two(rank: int, nprocs: int, address: str) -> Any:
    from multiprocessing.connection import Client, Listener

    if rank == 0:
        with Listener(address, "AF_UNIX") as door, door.accept() as pipe:
            return owner(pipe)
    while True:
        try:
            with Client(address, "AF_UNIX") as pipe:
                return guest(pipe)
        except FileNotFoundError:
            threading.Event().wait(0.01)


@pytest.mark.parametrize("transports", ["shm,cma,tcp", "tcp", "shm", "cma"])
def test_a_ticket_is_enough_for_two_processes(tmp_path: Path, transports: str) -> None:
    environment = {"TENT_TRANSPORTS": transports}
    address = str(tmp_path / "door")
    results = run_processes(one_of_two, 2, address, env=environment)
    assert sorted(results[0]) == [b"0", b"15", b"3", b"8"]
