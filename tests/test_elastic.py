"""Stage: tests. Training under torchrun that loses ranks and gains them: torchrun restarts it, it
resumes from its checkpoint, and the result is that of a run in which nothing happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import torch_tent_autoload
from tests import elastic_program
from tests.processes import run_processes

ROOT = Path(__file__).resolve().parent.parent
STEPS, LIMIT_S = 8, 150.0
PROGRAM = str(Path(elastic_program.__file__))


def undisturbed(rank: int, size: int, folder: str) -> dict[str, torch.Tensor]:
    """The same training in one process."""
    torch_tent_autoload.register()
    method = f"file://{folder}/meeting"
    dist.init_process_group("tent", init_method=method, rank=0, world_size=1)
    module = elastic_program.train(Path(folder), STEPS)
    dist.destroy_process_group()
    return {name: value.clone() for name, value in module.state_dict().items()}


def command(folder: Path, port: int, *options: str) -> list[str]:
    found = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
    found += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test", "--monitor-interval"]
    found += ["0.1", *options, PROGRAM, str(folder), str(STEPS), "tent"]
    return found


@contextmanager
def started(folder: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent with its workers, which end with the block at the latest."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "ab") as log:
        agent = subprocess.Popen(
            command(folder, port, *options), env=environment, stdout=log, stderr=log
        )
    try:
        yield agent
    finally:
        if agent.poll() is None:
            agent.send_signal(signal.SIGTERM)  # It ends its workers.
            try:
                agent.wait(15)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()


def wait_for(condition: object, folder: Path, agents: list[subprocess.Popen[bytes]]) -> None:
    assert callable(condition)
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        log = (folder / "log").read_text()
        assert time.monotonic() < deadline, log
        assert all(agent.poll() in (None, 0) for agent in agents), log
        time.sleep(0.05)


def notes(folder: Path) -> list[str]:
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


def check_result(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "undisturbed"
    other.mkdir()
    truth = run_processes(undisturbed, 1, str(other))[0]
    for name, value in torch.load(folder / "result").items():
        torch.testing.assert_close(value, truth[name], rtol=1e-5, atol=1e-6)


def free_port() -> int:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    return int(store.port)


@pytest.mark.timeout(200)
def test_torchrun_restarts_a_training_that_loses_a_rank(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "kill-3").touch()
    options = ["--nnodes", "1", "--nproc-per-node", "2", "--max-restarts", "2"]
    with started(folder, free_port(), *options) as agent:
        wait_for((folder / "result").exists, folder, [agent])
        assert agent.wait(30) == 0
    assert notes(folder) == ["start 0 with 2", "start 3 with 2"]
    check_result(folder, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_torchrun_scales_from_two_to_three_to_two(tmp_path: Path) -> None:
    """One worker per agent: the third agent comes, and is ended later."""
    folder, port = tmp_path / "run", free_port()
    folder.mkdir()
    (folder / "wait-2").write_text("3")
    (folder / "wait-5").write_text("2")
    options = ["--nnodes", "2:3", "--nproc-per-node", "1", "--max-restarts", "5"]
    options += ["--rdzv-conf", "last_call_timeout=2,join_timeout=120"]
    with started(folder, port, *options) as first, started(folder, port, *options) as second:
        wait_for(lambda: notes(folder) == ["start 0 with 2"], folder, [first, second])
        with started(folder, port, *options) as third:
            all_three = [first, second, third]
            wait_for(lambda: notes(folder)[-1] == "start 2 with 3", folder, all_three)
            wait_for(lambda: step_of(folder) == 4, folder, all_three)
        wait_for((folder / "result").exists, folder, [first, second])
        assert first.wait(60) == second.wait(60) == 0
    assert notes(folder)[-1] == "start 5 with 2"
    check_result(folder, tmp_path)


def step_of(folder: Path) -> int:
    saved: dict[str, int] = torch.load(folder / "checkpoint")
    return saved["step"]
