"""Stage: benchmarks, the parent. Who takes part: the known arms, the options of every question, and
a loopback of one's own.

Called by the question files at their start. What always holds: where there is root, the arms of one
host run in a network namespace that has nothing but a loopback, so that no peer takes another way.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from compare import FULL, QUICK, Pace
from harness import Arms, ArmSpec, arms
from results import Question

ROOT = Path(__file__).resolve().parent.parent
ISOLATED = "BENCHMARK_ISOLATED"
PEERS = ("gloo", "nixl", "mooncake", "mpi", "mptcp")
LOOPBACK = (("GLOO_SOCKET_IFNAME", "lo"), ("TENT_RAILS", "127.0.0.1"))


def peers_python() -> str:
    """The interpreter that has the peers: $PEERS_PYTHON, else .peers/ of the project, else ours."""
    local = ROOT / ".peers/bin/python"
    return os.environ.get("PEERS_PYTHON") or (str(local) if local.exists() else sys.executable)


def known(name: str) -> ArmSpec:
    """The arm of a name, with two players on one host and the paths that it has there."""
    python = sys.executable
    env = (*LOOPBACK, ("PYTHONPATH", str(ROOT)))
    if name in ("bare", "gloo", "tent"):
        return ArmSpec(name, name, python=python, env=env)
    if name == "nixl":
        # The bundled UCX may use all its paths on one host; no progress thread: the caller drives.
        return ArmSpec(name, name, python=peers_python(), env=LOOPBACK)
    if name == "mooncake":
        env = (("MC_FORCE_TCP", "1"), ("MC_TCP_ENABLE_CONNECTION_POOL", "1"))
        return ArmSpec(name, name, python=peers_python(), env=env)
    if name == "mpi":
        # ob1 over vader: shared memory, and process_vm_readv for what is large.
        words = ["mpirun", "--bind-to", "none", "-np", "2"]
        words += ["--mca", "pml", "ob1", "--mca", "btl", "self,vader"]
        allow = ["--allow-run-as-root"] if os.getuid() == 0 else []
        return ArmSpec(name, name, python=peers_python(), launcher=(*words, *allow))
    raise SystemExit(f"no arm is called {name}: choose from {', '.join(PEERS)}")


def options(description: str, against: str) -> argparse.ArgumentParser:
    """The options that every question has; `against` names its peers."""
    parser = argparse.ArgumentParser(
        description=description.strip().splitlines()[0].removeprefix("Stage: benchmarks. "),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--against", default=against, help="peers, with commas between")
    parser.add_argument("--quick", action="store_true", help="fewer cases, 5 short rounds")
    parser.add_argument("--json", metavar="FILE", help="write the results here, not to results/")
    parser.add_argument("--rounds", type=int, help="rounds of a case")
    parser.add_argument("--only", default="", help="only cases whose label contains this")
    return parser


def pace(chosen: argparse.Namespace) -> Pace:
    """How long to measure, by the options."""
    found = QUICK if chosen.quick else FULL
    return Pace(chosen.rounds, found.budget_s) if chosen.rounds else found


def names(chosen: argparse.Namespace, allowed: tuple[str, ...]) -> list[str]:
    """The peers of --against that this question knows."""
    wanted = [name for name in chosen.against.split(",") if name and name != "none"]
    unknown = sorted(set(wanted) - set(PEERS))
    if unknown:
        raise SystemExit(f"no peer is called {', '.join(unknown)}: choose from {', '.join(PEERS)}")
    return [name for name in wanted if name in allowed]


def isolate() -> None:
    """Starts this program anew in a namespace with only a loopback, where that is allowed."""
    if os.environ.get(ISOLATED) or os.getuid() != 0 or shutil.which("unshare") is None:
        return
    ip = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if ip is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        return
    os.environ[ISOLATED] = "1"
    inside = f'{ip} link set lo up && exec "$@"'
    os.execvp("unshare", ["unshare", "-n", "sh", "-c", inside, "sh", sys.executable, *sys.argv])


def run(
    name: str,
    unit: str,
    chosen: argparse.Namespace,
    specs: list[ArmSpec],
    measure: Callable[[Arms, Question, Pace], None],
) -> None:
    """Starts the arms, measures, and writes the results, also when it is interrupted."""
    # Ended from outside, it still ends its players and takes its folder away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with arms(specs) as found:
        question = Question(name, unit, [], found.versions(), found.absent)
        try:
            measure(found, question, pace(chosen))
        except KeyboardInterrupt:
            print("interrupted: what there is, is kept", file=sys.stderr)
        question.versions |= found.versions()
    question.save(chosen.json, chosen.quick)
