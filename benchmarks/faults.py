"""Stage: benchmarks, the parent. What a fault did to the bytes: gaps, rates, and the way back.

Called by rails.py and rdma.py with the deliveries that an arm reported, in seconds of the machine's
clock.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from compare import say
from harness import Arms, ArmSpec, RunningArm

MIB = 1 << 20
SETTLED_S = 0.1  # after a fault: from here on the rest of the rails must carry their full rate


@dataclass(frozen=True)
class Fault:
    """Its name, and (seconds after the start, words for whoever acts)."""

    name: str
    steps: list[tuple[float, tuple[str, ...]]]


class Script(threading.Thread):
    """Does a fault's steps at their times, by `act`; keeps when each was done."""

    def __init__(self, fault: Fault, act: Callable[..., None]) -> None:
        super().__init__(daemon=True)
        self.fault = fault
        self.done: list[float] = []
        self._act = act

    def run(self) -> None:
        """Counts from now."""
        began = time.monotonic()
        for after, words in self.fault.steps:
            time.sleep(max(0.0, began + after - time.monotonic()))
            self.done.append(time.monotonic())
            self._act(*words)


@dataclass
class Window:
    """One run through one fault. Rates are Gbit/s, times seconds."""

    gap: float = 0.0
    calm_gap: float = 0.0
    before: float = 0.0
    after: float = 0.0
    everything: float = 0.0
    back: float | None = None
    opened: float | None = None  # when the way itself was open again, where that was looked for
    error: str = ""
    worst: list[float] = field(default_factory=list)


def examine(reply: dict[str, Any], steps: Sequence[float], rail: str) -> Window:
    """What the deliveries of one run say. `steps`: when the fault began, and when it was mended."""
    delivered = reply["notes"]["delivered"]
    times = [at for at, _, _ in delivered]
    begin, end = reply["begin"], reply["end"]
    struck = steps[0] if steps else end
    mended = steps[1] if len(steps) > 1 else end
    found = Window(error=reply["notes"]["error"])
    # The way up and the last transfer's end are no gaps in anything.
    edges = [
        *(at for at in times if at > begin),
        end if found.error else times[-1] if times else end,
    ]
    gaps = [(late - early, early) for early, late in itertools.pairwise(edges)]
    found.gap = max((gap for gap, early in gaps if early + gap >= struck), default=end - struck)
    found.calm_gap = max((gap for gap, early in gaps if early + gap < struck), default=0.0)
    found.before = rate(delivered, begin + 0.3, struck)
    found.after = rate(delivered, struck + SETTLED_S, mended)
    found.everything = rate(delivered, begin, end)
    if len(steps) == 2:
        back = [at for at, _, name in delivered if rail in name and at > mended]
        found.back = back[0] - mended if back else None
    return found


def rate(delivered: Sequence[tuple[float, int, str]], begin: float, end: float) -> float:
    """Gbit/s of what was delivered in between."""
    if end <= begin:
        return 0.0
    times = [at for at, _, _ in delivered]
    some = delivered[bisect.bisect(times, begin) : bisect.bisect(times, end)]
    return 8e-9 * sum(size for _, size, _ in some) / (end - begin)


def flow_row(case: str, name: str, windows: Sequence[Window]) -> dict[str, Any]:
    """The row of one arm: medians, and the worst gap beside them."""
    good = [window for window in windows if not window.error]
    errors = [window.error for window in windows if window.error]
    backs = [window.back for window in good if window.back is not None]
    opened = [window.opened for window in good if window.opened is not None]
    shown = good or [window for window in windows if window.gap] or [Window()]

    def middle(name: str) -> float:
        return statistics.median(getattr(window, name) for window in shown)

    return {
        "case": case,
        "column": name,
        "role": "ours" if name == "tent" else "peer",
        "arm": name,
        "runs": len(windows),
        "errors": len(errors),
        "error": errors[0] if errors else "",
        "gap_s": middle("gap"),
        "gap_max_s": max(window.gap for window in shown),
        "calm_gap_s": middle("calm_gap"),
        "before_gbit": middle("before"),
        "after_gbit": middle("after"),
        "all_gbit": middle("everything"),
        "back_in_use_s": statistics.median(backs) if backs else None,
        "opened_s": statistics.median(opened) if opened else None,
        "windows": [vars(window) for window in windows],
    }


def print_faults(label: str, rows: Sequence[dict[str, Any]]) -> None:
    """Gaps and rates of one fault."""
    print(f"\nfault: {label}")
    for row in rows:
        back = row.get("back_in_use_s")
        print(
            f"  {row['column']:<12} longest gap {row['gap_s'] * 1e3:8.1f} ms "
            f"(calm {row['calm_gap_s'] * 1e3:.1f})  before {row['before_gbit']:.2f}, after "
            f"{row['after_gbit']:.2f}, all {row['all_gbit']:.2f} Gbit/s"
            + (f"  rail back after {back:.2f} s" if back is not None else "")
            + (
                f"  {row['errors']} of {row['runs']} failed: {row['error'][:60]}"
                if row["errors"]
                else ""
            ),
            flush=True,
        )


def background(
    found: Arms, noise_spec: ArmSpec, rail: tuple[str, str], quick: bool
) -> list[dict[str, Any]]:
    """Each arm's goodput while another program uses one rail now and then, beside what was left.

    What is left: the rails' plain rate, measured before, less what the other program got meanwhile.
    """
    seconds = 2.4 if quick else 4.8
    found.start(noise_spec)
    noise = found.running.get("noise")
    plain = found.running.get("bare")
    if noise is None or plain is None:
        return []
    rails = dict(noise_spec.options)["rails"]
    plain.call("prepare", "plain", "streams", {"bytes": 128 * MIB, "rails": rails})
    whole = statistics.median(_plain_rate(plain) for _ in range(3))
    plain.call("drop", "plain")
    params = {"rails": [rail], "seconds": seconds, "on_s": 0.3}
    rows = []
    for name in [n for n in ("tent", "mptcp", "nixl", "gloo", "mooncake") if n in found.running]:
        shares, rates = [], []
        for salt in range(2 if quick else 5):
            try:
                got, left = _beside(found.running[name], noise, params, name, salt + 1, whole)
            except Exception as why:
                say(f"background traffic: {name}: {why}")
                break
            shares.append(got / left)
            rates.append(got)
        if shares:
            rows.append(_background_row(name, shares, rates, whole))
    found.stop("noise")
    return rows


def _plain_rate(plain: RunningArm) -> float:
    replies = plain.call("run", "plain", 1)
    span = max(r["end"] for r in replies) - min(r["begin"] for r in replies)
    return 8e-9 * 128 * MIB / span


def _beside(
    arm: RunningArm, noise: RunningArm, params: dict[str, Any], name: str, salt: int, whole: float
) -> tuple[float, float]:
    """(its Gbit/s, what the other program left), in the middle of the run."""
    seconds = params["seconds"]
    size = (64 if name == "tent" else 16) * MIB
    noise.call("prepare", "noise", "noise", params)
    arm.call("prepare", "flow", "flow", {"bytes": size, "seconds": seconds})
    arm.call("fill", "flow", salt)
    arrived: list[tuple[float, int]] = []

    def disturb() -> None:
        for reply in noise.call("run", "noise", 1, limit_s=seconds + 20):
            arrived.extend(reply.get("notes", {}).get("noise", []))

    beside = threading.Thread(target=disturb)
    beside.start()
    reply = arm.call("run", "flow", 1, limit_s=seconds + 20)[0]
    beside.join()
    arm.call("drop", "flow")
    noise.call("drop", "noise")
    if reply["notes"]["error"]:
        raise OSError(reply["notes"]["error"])
    begin, end = reply["begin"] + 0.3, reply["begin"] + seconds - 0.1
    taken = rate([(at, size, "") for at, size in arrived], begin, end)
    return rate(reply["notes"]["delivered"], begin, end), whole - taken


def _background_row(
    name: str, shares: Sequence[float], rates: Sequence[float], whole: float
) -> dict[str, Any]:
    ordered = sorted(rates)
    return {
        "case": "background traffic",
        "column": name,
        "role": "ours" if name == "tent" else "peer",
        "arm": name,
        "unit": "Gbit/s",
        "pages": "",
        "seconds": list(rates),
        "median": statistics.median(ordered),
        "low": ordered[0],
        "high": ordered[-1],
        "rails_gbit": whole,
        "speed_against": {"what was left": statistics.median(shares)},
    }
