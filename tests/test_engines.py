"""Tests of torch_tent.engines and default: several in one process, forks, exits, endings."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

import torch_tent as tent
from tests.pairs import WAIT_S, two_engines, until
from tests.processes import run_processes
from torch_tent import default
from torch_tent.settings import Settings


def engine_threads() -> int:
    """Those of engines; torch has some of its own."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("tent-") for name in names)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of its own, as users do."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, **environment},
        cwd=Path(__file__).parent.parent,
    )


def test_three_engines_in_one_process() -> None:
    engines = [tent.Engine(Settings(), name=f"engine {n}") for n in range(3)]
    store = HashStore()
    groups = [engine.join(store, n, 3) for n, engine in enumerate(engines)]
    try:
        received = []
        for n, engine in enumerate(engines):
            y = torch.zeros(1)
            received.append((engine.recv(y, (n - 1) % 3, group=groups[n]), y))
        for n, engine in enumerate(engines):
            engine.send(torch.tensor([float(n)]), (n + 1) % 3, group=groups[n]).wait(WAIT_S)
        for n, (transfer, y) in enumerate(received):
            transfer.wait(WAIT_S)
            assert y.item() == (n - 1) % 3
            assert transfer.report()["peer"] == f"engine {(n - 1) % 3}"
    finally:
        for engine in engines:
            engine.close()


def use_and_close() -> None:
    """Two engines that have been busy; the first is closed under the second's eyes."""
    with two_engines() as pair:
        pair.exchange(torch.ones(1 << 16), torch.zeros(1 << 16))
        segment = pair.a.register(torch.zeros(3))
        remote: Any = pair.b.open(segment.ticket())
        assert engine_threads() > 0
        pair.a.close()
        pair.a.close()
        for call in (
            lambda: pair.a.empty(3),
            lambda: pair.a.register(torch.zeros(3)),
            lambda: pair.a.send(torch.zeros(3), 1, group=pair.group_a),
            lambda: pair.a.stats(),
        ):
            with pytest.raises(RuntimeError, match="closed"):
                call()
        error = pair.b.read(remote).exception(WAIT_S)
        assert isinstance(error, tent.TransferError)
        segment.close()


def test_a_closed_engine_leaves_nothing_and_says_so() -> None:
    with two_engines():  # What is made once for the process is made here.
        pass
    gc.collect()
    threads, files = engine_threads(), len(os.listdir("/proc/self/fd"))
    use_and_close()
    gc.collect()
    until(lambda: engine_threads() <= threads)
    until(lambda: len(os.listdir("/proc/self/fd")) <= files)


def test_an_engine_that_nobody_has_any_more_goes() -> None:
    engine = tent.Engine(Settings())
    threads = engine_threads()
    last = weakref.ref(engine)
    y = torch.zeros(4)
    segment = engine.register(y)
    del engine
    gc.collect()
    assert last() is not None  # The segment has it.
    del segment
    gc.collect()
    until(lambda: last() is None)
    until(lambda: engine_threads() < threads)


def test_the_default_engine_is_made_once_and_anew_after_it_was_closed() -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(tent.engine())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    first = found[0]
    assert tent.engine() is first
    assert tent.stats().keys() == first.stats().keys()
    assert tent.stats()["name"] == first.card.name
    first.close()
    assert default.engine() is not first
    assert tent.empty(3).shape == (3,)
    tent.engine().close()


FORKED = """
import os, sys, torch, torch_tent as tent
from torch.distributed import HashStore
first, second = tent.engine(), tent.Engine()
store = HashStore()
groups = first.join(store, 0, 2), second.join(store, 1, 2)
waiting = second.recv(torch.zeros(2), 0, 1, group=groups[1])
segment = first.register(torch.zeros(2))
remote = second.open(segment.ticket())
cache = tent.KVCache([torch.zeros(4, 4)])
child = os.fork()
if child == 0:
    calls = [
        lambda: tent.send(torch.ones(2), 1),
        lambda: first.send(torch.ones(2), 1, group=groups[0]),
        lambda: second.read(remote),
        lambda: tent.empty(2),
        lambda: tent.register(torch.ones(2)),
        lambda: tent.stats(),
        lambda: waiting.wait(1),
        lambda: waiting.done(),
        lambda: waiting.cancel(),
        lambda: cache.wait_notification(1),
        lambda: list(cache.notifications()),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except tent.TentError as error:
            assert "spawn" in str(error) and "fork" in str(error), (number, error)
        else:
            raise SystemExit(f"call {number} worked")
    segment.close(); cache.close(); first.close()
    own = tent.Engine()
    again = own.register(torch.ones(2))
    own.close()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
first.send(torch.ones(2), 1, 1, group=groups[0]).wait(10)
waiting.wait(10)
second.read(remote).wait(10)
print("well")
"""


def test_a_forked_child_is_told_and_the_parent_goes_on() -> None:
    done = run(FORKED)
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr


LEFT_OPEN = """
import torch, torch_tent as tent
from torch.distributed import HashStore
first, second = tent.engine(), tent.Engine()
store = HashStore()
groups = first.join(store, 0, 2), second.join(store, 1, 2)
waiting = second.recv(torch.zeros(2), 0, 1, group=groups[1])
waiting.add_done_callback(lambda t: print(type(t.exception()).__name__))
cache = tent.KVCache([torch.zeros(4, 4)])
shared = tent.empty(1 << 20)
"""


def test_a_program_may_end_without_closing_anything() -> None:
    began = time.monotonic()
    done = run(LEFT_OPEN)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.strip() in {"TransferCancelled", "PeerLostError"}
    assert time.monotonic() - began < 30


INTERRUPTED = """
import _thread, threading, time, torch, torch_tent as tent
from torch.distributed import HashStore
first, second = tent.Engine(), tent.Engine()
store = HashStore()
groups = first.join(store, 0, 2), second.join(store, 1, 2)
waiting = second.recv(torch.zeros(2), 0, 1, group=groups[1])
threading.Timer(0.3, _thread.interrupt_main).start()
try:
    waiting.wait()
except KeyboardInterrupt:
    print("interrupted")
first.send(torch.ones(2), 1, 1, group=groups[0])
print(waiting.wait(10).tolist())
"""


def test_ctrl_c_is_heard_while_one_waits() -> None:
    done = run(INTERRUPTED)
    assert (done.stdout, done.returncode) == ("interrupted\n[1.0, 1.0]\n", 0), done.stderr


BUSY_AT_THE_END = """
import threading, time, torch, torch_tent as tent
from torch.distributed import HashStore
first, second = tent.Engine(), tent.Engine()
store = HashStore()
groups = first.join(store, 0, 2), second.join(store, 1, 2)
waiting = [second.recv(torch.zeros(2), 0, n, group=groups[1]) for n in range(4)]

def again(call):
    while True:
        try:
            call()
        except Exception:
            time.sleep(0)

for call in (*(w.wait for w in waiting), first.stats, first.stats, second.stats, second.stats):
    threading.Thread(target=again, args=(call,), daemon=True).start()
time.sleep(0.1)
print("ends")
"""


def test_daemon_threads_do_not_abort_the_end_of_a_program() -> None:
    """Python before 3.14 unwinds a thread that asks for the GIL too late. Torch's own calls then
    abort, so the threads here call none."""
    for _ in range(3):
        done = run(BUSY_AT_THE_END)
        assert (done.stdout, done.stderr, done.returncode) == ("ends\n", "", 0)


def test_the_environment_is_read_when_an_engine_is_made() -> None:
    good = "import torch_tent as tent; print(tent.engine().settings.checksum)"
    assert run(good, TENT_CHECKSUM="1").stdout == "True\n"
    bad = run("import torch_tent as tent; print('imported'); tent.engine()", TENT_RIALS="lo")
    assert bad.stdout == "imported\n"
    assert "TENT_RAILS" in bad.stderr


def killed_while_waiting(rank: int, nprocs: int) -> None:
    tent.empty(1 << 20).fill_(1)


def test_processes_of_a_fork_server_have_engines_of_their_own() -> None:
    run_processes(killed_while_waiting, 2)
