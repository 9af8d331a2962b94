"""Stage: benchmarks. Question: what do several rails give, healthy and not?

Four rails of 1 Gbit/s between two namespaces (rails.sh, needs root): goodput when all is well, with
one rail at a tenth of its rate, and with another program's traffic on one; and the longest gap in
delivered bytes when a rail is cut, dropped, reset, slowed 100 times or flaps. Run alone:
`python benchmarks/rails.py --quick`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lineup
from compare import Case, Pace, compare
from faults import Fault, Script, Window, background, examine, flow_row, print_faults
from harness import ArmFailed, Arms, ArmSpec, Column
from p2p import size_name
from results import Question, print_rows

MIB = 1 << 20
HERE = Path(__file__).resolve().parent
SCRIPT = str(HERE / "rails.sh")
RAILS = [(f"10.77.{i}.1", f"10.77.{i}.2") for i in range(4)]
DEVICES = ",".join(f"r{i}" for i in range(4))
WEAK = 1  # the rail that suffers
SLOW_SHARE = 0.1


def rails(*words: str) -> None:
    """Does something to the rails."""
    subprocess.run([SCRIPT, os.environ["RAILS_NAME"], *words], check=True)


def spec(name: str) -> ArmSpec:
    """An arm whose two players sit at the two ends of the rails."""
    space = os.environ["RAILS_NAME"]
    prefix = tuple(("ip", "netns", "exec", f"{space}-{side}") for side in "ab")
    env: dict[str, str] = {}
    if name == "tent":
        # Both ends are on one host: only rails, and a secret, without which it listens on loopback.
        env = {"TENT_TRANSPORTS": "tcp", "TENT_SECRET": "benchmark"}
        env |= {"TENT_RAILS": "10.77.0.0/16", "PYTHONPATH": str(lineup.ROOT)}
    if name == "gloo":
        env = {"GLOO_SOCKET_IFNAME": DEVICES}
    if name == "nixl":
        env = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": DEVICES, "UCX_MAX_RMA_RAILS": "4"}
    if name == "mooncake":
        env = {"MC_FORCE_TCP": "1", "MC_TRANSFER_TIMEOUT": "15"}
    options = {"rails": RAILS, "hosts": [RAILS[0][0], RAILS[0][1]], "timeout_s": 20}
    if name in ("mptcp", "noise"):
        base = ArmSpec(name, "bare" if name == "noise" else "mptcp")
    else:
        base = lineup.known(name)
    return replace(base, prefix=prefix, env=tuple(env.items()), options=tuple(options.items()))


def goodput(size: int, label: str, shares: Sequence[float], limit: str) -> Case:
    """One write of `size` bytes; plain sockets get the split that fits the rails."""
    columns = (
        Column(limit, "bare", "streams", "limit", (("rails", RAILS), ("shares", list(shares)))),
        Column("tent.write", "tent", "write", "ours"),
        Column("mptcp", "mptcp", "write", "peer"),
        Column("nixl write", "nixl", "write", "peer"),
        Column("gloo, 16 isends", "gloo", "parts", "peer"),
        Column("mooncake write", "mooncake", "write", "peer"),
    )
    return Case(f"{label}, {size_name(size)}", {"bytes": size}, columns, fixed=1)


def measure_goodput(found: Arms, question: Question, pace: Pace, only: str) -> None:
    """All rails well, then one of them at a tenth."""
    even, uneven = [1.0] * 4, [1.0] * 4
    uneven[WEAK] = SLOW_SHARE
    plans = [("healthy", size, even, "plain sockets, even") for size in (128, 16)]
    plans += [("one slow", size, uneven, "sum of the rails") for size in (128, 16, 4)]
    slow = False
    for label, size, shares, limit in plans:
        case = goodput(size * MIB, label, shares, limit)
        if only not in case.label:
            continue
        if label == "one slow" and not slow:
            rails("rate", str(WEAK), "100mbit")
            slow = True
        question.add(case, compare(found, case, pace))
    if slow:
        rails("undrop", str(WEAK))


def faults(seconds: float) -> list[Fault]:
    """What happens to a rail, and when: seconds after the start, words for rails.sh."""
    rail, half = str(WEAK), seconds / 2
    mend = seconds * 0.7
    flaps: list[tuple[float, tuple[str, ...]]] = []
    for n in range(int(seconds / 0.5) - 1):
        flaps.append((0.5 + 0.5 * n, ("cut" if n % 2 == 0 else "mend", rail)))
    if len(flaps) % 2:
        flaps.append((seconds, ("mend", rail)))
    return [
        Fault("cut", [(half, ("cut", rail)), (mend, ("mend", rail))]),
        Fault("dropped", [(half, ("drop", rail)), (mend, ("undrop", rail))]),
        Fault("reset", [(half, ("reset", rail))]),
        Fault("slowed 100 times", [(half, ("rate", rail, "10mbit")), (mend, ("undrop", rail))]),
        Fault("flapping", flaps),
    ]


def measure_faults(found: Arms, question: Question, chosen: Any) -> None:
    """Each arm through each fault, some times over, in turns."""
    seconds = 3.0 if chosen.quick else 5.0
    rounds = chosen.rounds or (2 if chosen.quick else 5)
    for fault in faults(seconds):
        if chosen.only not in f"fault: {fault.name}":
            continue
        seen: dict[str, list[Window]] = {}
        for number in range(rounds):
            for name in [
                n for n in ("tent", "mptcp", "gloo", "nixl", "mooncake") if n in found.running
            ]:
                window = one_fault(found, name, fault, seconds, number)
                seen.setdefault(name, []).append(window)
                rails("mend", str(WEAK))
                rails("undrop", str(WEAK))
                time.sleep(0.5)
        rows = [flow_row(f"fault: {fault.name}", name, windows) for name, windows in seen.items()]
        question.rows += rows
        print_faults(fault.name, rows)


def one_fault(found: Arms, name: str, fault: Fault, seconds: float, salt: int) -> Window:
    """One arm, one fault; what goes wrong is in the window."""
    arm = found.running[name]
    size = (64 if name == "tent" else 4) * MIB
    script = Script(fault, rails)
    try:
        arm.call("prepare", fault.name, "flow", {"bytes": size, "seconds": seconds})
        arm.call("fill", fault.name, salt + 1)
        script.start()
        reply = arm.call("run", fault.name, 1, limit_s=seconds + 20)[0]
        script.join()
        wrong = [w for w in arm.call("check", fault.name, salt + 1) if w]
        arm.call("drop", fault.name)
        if wrong:
            raise ArmFailed(f"wrong bytes: {wrong[0]}")
    except ArmFailed as why:
        if script.ident is not None:
            script.join()
        found.drop(name, f"{fault.name}: {why}")
        rails("undrop", str(WEAK))
        rails("mend", str(WEAK))
        found.start(arm.spec)
        return Window(error=str(why)[:120])
    window = examine(reply, script.done, rail=f"10.77.{WEAK}.")
    if window.error:  # An arm that failed once is of no more use.
        found.drop(name, f"{fault.name}: {window.error}")
        found.start(arm.spec)
    return window


def main() -> None:
    """Runs the question inside its namespaces."""
    parser = lineup.options(__doc__ or "", "mptcp,nixl,gloo,mooncake")
    chosen = parser.parse_args()
    if "RAILS_NAME" not in os.environ:
        if os.getuid() != 0:
            raise SystemExit("rails.py makes network namespaces: run it as root")
        os.execv(SCRIPT, [SCRIPT, "with", sys.executable, *sys.argv])
    peers = lineup.names(chosen, ("mptcp", "nixl", "gloo", "mooncake"))

    def measure(found: Arms, question: Question, pace: Pace) -> None:
        measure_goodput(found, question, replace(pace, limit_s=30), chosen.only)
        if chosen.only in "background traffic":
            row = background(found, spec("noise"), RAILS[WEAK], chosen.quick)
            question.rows += row
            print_rows("background traffic on one rail", row)
        measure_faults(found, question, chosen)

    lineup.run("rails", "Gbit/s", chosen, [spec(n) for n in ("bare", "tent", *peers)], measure)


if __name__ == "__main__":
    main()
