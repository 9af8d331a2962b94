"""Stage: benchmarks, the parent. Two RDMA rails, one of which fails while bytes flow: how long
nothing arrives, what is left, and when the rail is used again.

Called by rdma.py. The slices of the first run of each fault are kept, for the picture that
rdma_picture.py draws of them.
"""

from __future__ import annotations

import subprocess
import time
from typing import Any

from faults import Fault, Script, Window, examine, flow_row, print_faults
from harness import ArmFailed, Arms
from rail_opening import Opening
from results import Question

MIB = 1 << 20
WEAK = "rail1"
ENDS, DEVICES = (f"{WEAK}a", f"{WEAK}b"), ("rxe1a", "rxe1b")
MARGIN_S = 1.0  # before a fault and after its end: what is kept for the picture


def act(*words: str) -> None:
    """One command, or several with "and" between."""
    text = " ".join(words)
    for command in text.split(" and "):
        subprocess.run(command.split(), check=True)


def faults(seconds: float) -> list[Fault]:
    """What happens to a rail, and when it is mended."""
    half, mend = seconds / 2, seconds * 0.7

    def link(side: str, state: str) -> tuple[str, ...]:
        return ("ip", "link", "set", f"{WEAK}{side}", state)

    def loss(verb: str, *words: str) -> tuple[str, ...]:
        near = ("tc", "qdisc", verb, "dev", f"{WEAK}a", "root", *words)
        return (*near, "and", "tc", "qdisc", verb, "dev", f"{WEAK}b", "root", *words)

    lost = loss("replace", "netem", "loss", "100%")
    return [
        Fault("cut here", [(half, link("a", "down")), (mend, link("a", "up"))]),
        Fault("cut at the far end", [(half, link("b", "down")), (mend, link("b", "up"))]),
        Fault("silent loss", [(half, lost), (mend, loss("del"))]),
    ]


def measure_faults(found: Arms, question: Question, chosen: Any, name: str) -> None:
    """The arm `name` through each fault, some times over."""
    seconds, rounds = 8.0, chosen.rounds or (2 if chosen.quick else 3)
    for fault in faults(seconds):
        label = f"fault: {fault.name}"
        if chosen.only not in label or name not in found.running:
            continue
        runs = [_one(found, name, fault, seconds, number + 1) for number in range(rounds)]
        row = flow_row(label, "tent", [window for window, _, _ in runs])
        _, row["slices"], row["steps_s"] = runs[0]
        question.rows.append(row)
        print_faults(fault.name, [row])
        if row["opened_s"] is not None:
            print(f"    the kernel lets packets through after {row['opened_s']:.2f} s of that")


def _one(
    found: Arms, name: str, fault: Fault, seconds: float, salt: int
) -> tuple[Window, list[Any], list[float]]:
    """One run: what it says; each slice's time, bytes and rail; and when the steps were done."""
    arm = found.running[name]
    params = {"bytes": 8 * MIB, "seconds": seconds, "pages": "4k"}
    opening = Opening(ENDS, DEVICES)

    def step(*words: str) -> None:
        if len(script.done) == 2:  # It is being mended.
            opening.start()
        act(*words)

    script = Script(fault, step)
    try:
        arm.call("prepare", fault.name, "flow", params)
        arm.call("fill", fault.name, salt)
        script.start()
        reply = arm.call("run", fault.name, 1, limit_s=seconds + 60)[0]
        script.join()
        wrong = [text for text in arm.call("check", fault.name, salt) if text]
        arm.call("drop", fault.name)
        if wrong:
            raise ArmFailed(f"wrong bytes: {wrong[0]}")
    except ArmFailed as why:
        if script.ident is not None:
            script.join()
        found.drop(name, f"{fault.name}: {why}")
        found.start(arm.spec)
        return Window(error=str(why)[:120]), [], []
    time.sleep(1.0)  # The rail is to be in use again before the next fault.
    window = examine(reply, script.done, rail=DEVICES[0])
    opened = opening.open_at()
    window.opened = None if opened is None else opened - script.done[1]
    begin = reply["begin"]
    first, last = script.done[0] - MARGIN_S, script.done[-1] + MARGIN_S
    slices = [
        [round(at - begin, 4), size, rail]
        for at, size, rail in reply["notes"]["delivered"]
        if first < at < last
    ]
    return window, slices, [at - begin for at in script.done]
