"""Stage: benchmarks, the parent. What torch_tent has to reach, and whether the rows show it.

Called by run.py with the rows of each question. What always holds: a target is a ratio within one
run; one that was not measured says so and does not pass.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """`measure` finds the worst value in the rows of `question`; None where there is none."""

    question: str
    what: str
    least: float | None
    most: float | None
    unit: str
    measure: Callable[[Rows], float | None]

    def passes(self, value: float) -> bool:
        """Whether the value is good enough."""
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    def limit(self) -> str:
        """What is asked, in words."""
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"


def worst(values: Iterable[float | None], pick: Callable[..., float] = min) -> float | None:
    """The least (or `pick` of) what was measured; None where nothing was."""
    found = [value for value in values if value is not None]
    return pick(found) if found else None


def speed(case: str, ours: Sequence[str], other: str) -> Callable[[Rows], float | None]:
    """How many times as fast as `other` ours are, at worst, in the cases that begin so."""

    def measure(rows: Rows) -> float | None:
        return worst(
            row.get("speed_against", {}).get(other)
            for row in rows
            if row["case"].startswith(case) and row["column"] in ours
        )

    return measure


def slowness(case: str, ours: Sequence[str], *others: str) -> Callable[[Rows], float | None]:
    """How many times the time of the quickest of `others` ours take, at worst."""

    def measure(rows: Rows) -> float | None:
        speeds = [worst([speed(case, ours, other)(rows)]) for other in others]
        found = worst(speeds)
        return None if found is None else 1 / found

    return measure


def value(case: str, column: str, key: str, pick: Any = max) -> Callable[[Rows], float | None]:
    """One number of the rows, at worst."""

    def measure(rows: Rows) -> float | None:
        found = [
            row.get(key) for row in rows if row["case"].startswith(case) and row["column"] == column
        ]
        return worst(found, pick)

    return measure


def against_own(case: str, ours: str, piece: str) -> Callable[[Rows], float | None]:
    """How many times the time of another column of ours, by the medians of one case."""

    def measure(rows: Rows) -> float | None:
        medians = {
            row["column"]: statistics.median(row["seconds"])
            for row in rows
            if row["case"].startswith(case) and "seconds" in row
        }
        both = ours in medians and piece in medians
        return medians[ours] / medians[piece] if both else None

    return measure


def per_block(rows: Rows) -> float | None:
    """Nanoseconds of the call for each of 100,000 blocks."""
    found = [row for row in rows if row["case"].startswith("call for 100000") and "median" in row]
    return found[0]["median"] * 1e6 / found[0]["params"]["count"] if found else None


def first_slice(rows: Rows) -> float | None:
    """Milliseconds from the call for 100,000 blocks to its first slice."""
    found = [row for row in rows if row["case"].startswith("call for 100000")]
    late = [s for row in found for note in row.get("notes", []) for s in note["first_slice_s"]]
    return statistics.median(late) * 1e3 if late else None


def scaled(measure: Callable[[Rows], float | None], factor: float) -> Any:
    """The same in another unit."""

    def found(rows: Rows) -> float | None:
        measured = measure(rows)
        return None if measured is None else measured * factor

    return found


BULK = ("64 MiB, huge", "512 MiB, huge")
COLLECTIVES = ("all_reduce", "all_gather", "all_to_all", "broadcast")


def over(cases: Sequence[str], ours: Sequence[str], other: str) -> Callable[[Rows], float | None]:
    """`speed` over several cases, the worst."""
    return lambda rows: worst(speed(case, ours, other)(rows) for case in cases)


def bandwidth() -> list[Target]:
    """One tensor, one host."""
    shared, ordinary = ("tent.write shared",), ("tent.write", "tent.read")
    sizes = ("64 KiB", "256 KiB", "1 MiB", "4 MiB", "16 MiB", "64 MiB")
    rows: list[tuple[str, float, Any]] = [
        ("shared write, 64 MiB and up: x memcpy", 0.92, over(BULK, shared, "memcpy")),
        ("ordinary, 64 MiB and up: x readv", 0.92, over(BULK, ordinary, "process_vm_readv")),
        ("ordinary, 64 MiB and up: x nixl", 1.1, over(BULK, ordinary[:1], "nixl write")),
        ("ordinary, 64 MiB and up: x nixl read", 1.1, over(BULK, ordinary[1:], "nixl read")),
        ("ordinary, 64 MiB and up: x gloo", 2.0, over(BULK, ordinary, "gloo")),
        ("dist.send, every size: x gloo", 2.5, over(sizes, ("tent dist",), "gloo")),
        ("dist.send, 8 B: x gloo", 8.0, speed("round trip 8 B", ("tent dist",), "gloo")),
    ]
    return [Target("p2p", what, least, None, "x", measure) for what, least, measure in rows]


def latency() -> list[Target]:
    """8 bytes, one host."""
    half = scaled(value("round trip 8 B", "tent.send", "median"), 0.5)
    wakes = slowness("wake a sleeper", ("tent dist", "tent.send"), "eventfd")
    write = slowness("one-sided 8 B", ("tent.write",), "nixl write")
    read = slowness("one-sided 8 B", ("tent.read",), "nixl read")
    rows: list[tuple[str, float, str, Any]] = [
        ("tent.send, 8 B, half a round trip", 4.0, "us", half),
        ("tent.write, 8 B: x nixl's time", 1.0, "x", write),
        ("tent.read, 8 B: x nixl's time", 1.0, "x", read),
        ("a sleeping receiver: x eventfd's time", 1.2, "x", wakes),
    ]
    return [Target("p2p", what, None, most, unit, measure) for what, most, unit, measure in rows]


def blocks() -> list[Target]:
    """Scattered blocks."""
    case, ours = "256 x 64 KiB", "tent.write_blocks"
    nixl = speed(case, (ours,), "nixl by index")
    mpi = speed(case, (ours,), "mpi indexed type")
    return [
        Target("blocks", "256 x 64 KiB: x our one piece's time", None, 1.1, "x",
               against_own(case, ours, "tent.write, one piece")),
        Target("blocks", "256 x 64 KiB: x nixl", 1.0, None, "x", nixl),
        Target("blocks", "256 x 64 KiB: x mpi's indexed type", 1.0, None, "x", mpi),
        Target("blocks", "100,000 x 4 KiB: the call, a block", None, 40, "ns", per_block),
        Target("blocks", "100,000 x 4 KiB: to the first slice", None, 1.0, "ms", first_slice),
    ]  # fmt: skip


def rails() -> list[Target]:
    """Four rails of 1 Gbit/s."""
    found = []
    for label, other, asks in (
        ("healthy", "plain sockets, even", {128: 0.99, 16: 0.97}),
        ("one slow", "sum of the rails", {128: 0.98, 16: 0.95, 4: 0.90}),
    ):
        for size, least in asks.items():
            measure = speed(f"{label}, {size} MiB", ("tent.write",), other)
            found.append(
                Target("rails", f"{label}, {size} MiB: x {other}", least, None, "x", measure)
            )
    left = speed("background traffic", ("tent",), "what was left")
    found.append(Target("rails", "background traffic: x what was left", 0.95, None, "x", left))
    for fault, gap in (("cut", 10), ("dropped", 50), ("reset", 10), ("slowed", 50)):
        measure = scaled(value(f"fault: {fault}", "tent", "gap_s"), 1e3)
        found.append(Target("rails", f"{fault}: longest gap", None, gap, "ms", measure))
    for fault in ("cut", "dropped"):
        back = value(f"fault: {fault}", "tent", "back_in_use_s")
        found.append(Target("rails", f"{fault}, then healed: in use after", None, 1.0, "s", back))
    errors = value("fault: ", "tent", "errors")
    found.append(Target("rails", "all faults: transfers that failed", None, 0, "", errors))
    return found


def others() -> list[Target]:
    """Collectives, mixed traffic, cost."""
    found = []
    for name in COLLECTIVES:
        measure = speed(name, ("tent",), "gloo")
        what = f"{name}, every size: x gloo"
        found.append(Target("collectives", what, 2.0, None, "x", measure))
    for place in ("host", "rails"):
        late = value("64 KiB beside", "tent", "p99_ratio")
        keeps = value("64 KiB beside", "tent", "elephant_keeps", min)
        name = f"mixed-{place}"
        found.append(Target(name, f"{place}: foreground P99, x alone", None, 2.0, "x", late))
        found.append(Target(name, f"{place}: the elephant keeps", 0.9, None, "x", keeps))
    for place in ("loopback", "rails"):
        cpu = value("processor time", "tent.write", "times_plain_sockets")
        what = f"processor time, {place}: x plain sockets"
        found.append(Target(f"cost-{place}", what, None, 1.1, "x", cpu))
    memory = scaled(value("idle peers", "tent", "bytes_per_peer"), 1 / 1024)
    found.append(Target("cost-loopback", "memory of an idle peer", None, 64, "KiB", memory))
    threads = value("idle peers", "tent", "threads_more")
    found.append(Target("cost-loopback", "threads that peers add", None, 0, "", threads))
    flat = value("idle peers", "tent", "latency_ratio")
    found.append(Target("cost-loopback", "8-byte read, x that with one peer", None, 1.5, "x", flat))
    return found


def targets() -> list[Target]:
    """All of them, in the order of the table."""
    return [*bandwidth(), *latency(), *blocks(), *rails(), *others()]
