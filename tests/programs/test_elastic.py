"""Stage: tests. Training under torchrun's elastic agents: a worker that is killed in the middle of
a step is restarted with the others, agents come and go; the end is that of an undisturbed training.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.programs.trainer import data
from tests.programs.twins import model
from tests.test_process_group import ROOT, free_port

STEPS = 12
PATIENCE_S = 100.0
# Agents that keep silent are given up soon.
RENDEZVOUS = "keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=60"
# An agent's store serves the workers of all rounds, so it holds what earlier workers left there.
# But torch 2.13 tells agents that come later nothing of it: they need workers that make a new one.
NEW_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


# How an agent may end that is told to leave. Threads of torch's agent may still call its store when
# the interpreter ends, which aborts it: torch 2.13 with Python before 3.14.
FINE = {None, 1, -signal.SIGTERM, -signal.SIGABRT}


class Agents:
    """torchrun's agents on this host, each in a process group of its own with its workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env: dict[str, str] = {}
        self.last_call_s = 1  # How long an agent waits for more than are needed.
        self._endpoint = f"127.0.0.1:{free_port()}"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, nodes: str, workers: int) -> subprocess.Popen[bytes]:
        conf = f"is_host={int(not self._running)},last_call_timeout={self.last_call_s},{RENDEZVOUS}"
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", nodes, "--nproc-per-node", str(workers)]
        command += ["--max-restarts", "3", "--monitor-interval", "0.1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", self._endpoint]
        command += ["--rdzv-id", "test", "--rdzv-conf", conf]
        command += ["--log-dir", str(self.folder / "log"), "--local-addr", "127.0.0.1"]
        command += ["-m", "tests.programs.trainer", str(self.folder), str(STEPS)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.env}
        env["TMPDIR"] = str(self.folder)
        output = (self.folder / f"agent-{len(self._running)}").open("wb")
        with output:
            agent = subprocess.Popen(
                command, env=env, stdout=output, stderr=output, start_new_session=True
            )
        self._running.append(agent)
        return agent

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("agent-*")))

    def progress(self) -> list[tuple[int, int]]:
        """Number of workers and step, of all workers that were ever rank 0."""
        found = []
        for path in sorted(self.folder.glob("progress-*"), key=lambda path: path.stat().st_mtime):
            lines = path.read_text().splitlines()
            found += [(int(a), int(b)) for a, b in (line.split() for line in lines)]
        return found

    def wait_for_steps(self, workers: int, count: int, after: int) -> int:
        """Until so many steps of that many workers came after the first `after`; how many now."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            steps = self.progress()
            if sum(size == workers for size, _ in steps[after:]) >= count:
                return len(steps)
            assert time.monotonic() < deadline, f"{steps}\n{self.said()}"
            assert all(agent.poll() in FINE for agent in self._running), self.said()
            time.sleep(0.1)

    def close(self) -> None:
        """Nothing of them goes on: agents end their workers, and whoever does not is killed."""
        for agent in self._running:
            if agent.poll() is None:
                agent.terminate()
        for agent in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGKILL)
            agent.wait(10)


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    made = Agents(tmp_path)
    yield made
    made.close()


def undisturbed(steps: int) -> dict[str, torch.Tensor]:
    """What one process comes to by itself, with all data of each step."""
    module = model()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for step in range(steps):
        x, y = data(step)
        nn.functional.mse_loss(module(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.state_dict()


def check_result(agents: Agents) -> int:
    """The checkpoint at the end is that of an undisturbed training; its number of steps."""
    state = torch.load(agents.folder / "checkpoint", weights_only=True)
    steps = state["step"]
    assert steps >= STEPS
    for name, expected in undisturbed(steps).items():
        torch.testing.assert_close(state["module"][name], expected, rtol=1e-3, atol=1e-4)
    return int(steps)


@pytest.mark.timeout(240)
def test_a_killed_worker_is_restarted_from_the_checkpoint(agents: Agents) -> None:
    for name in ("kill-1-5", "kill-0-9", "enough"):
        (agents.folder / name).touch()
    agent = agents.start("1", 2)
    assert agent.wait(PATIENCE_S) == 0, agents.said()
    assert check_result(agents) == STEPS
    steps = [step for _, step in agents.progress()]
    assert steps == [*range(1, 6), *range(5, 10), *range(9, STEPS + 1)], "not restarted there"
    for path in agents.folder.glob("error-*"):  # Unless the agent ended them before they heard.
        assert "is lost" in path.read_text()


@pytest.mark.timeout(400)
def test_agents_come_and_go(agents: Agents) -> None:
    """Two workers, then three, then two again: the agent that leaves is not waited for."""
    agents.env = NEW_STORES
    first, second = agents.start("2:3", 1), agents.start("2:3", 1)
    seen = agents.wait_for_steps(2, 4, 0)
    third = agents.start("2:3", 1)
    seen = agents.wait_for_steps(3, 4, seen)
    leave(third)
    agents.wait_for_steps(2, 4, seen)
    finish(agents, [first, second], [2, 3, 2])


@pytest.mark.timeout(240)
def test_an_agent_leaves_and_its_store_stays(agents: Agents) -> None:
    """Three workers meet, and then two, where those three have met."""
    agents.last_call_s = 10
    stays, leaves = agents.start("1:2", 2), agents.start("1:2", 1)
    seen = agents.wait_for_steps(3, 4, 0)
    leave(leaves)
    agents.wait_for_steps(2, 4, seen)
    finish(agents, [stays], [3, 2])


def leave(agent: subprocess.Popen[bytes]) -> None:
    agent.send_signal(signal.SIGTERM)
    agent.wait(40)


def finish(agents: Agents, last: list[subprocess.Popen[bytes]], workers: list[int]) -> None:
    (agents.folder / "enough").touch()
    for agent in last:
        assert agent.wait(PATIENCE_S) == 0, agents.said()
    check_result(agents)
    sizes = [size for size, _ in agents.progress()]
    assert [a for a, b in zip(sizes, [0, *sizes], strict=False) if a != b] == workers
