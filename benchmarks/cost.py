"""Stage: benchmarks. Question: what does it cost, in processor time, memory and threads?

Processor seconds of both ends per GB over TCP, on loopback and over shaped rails (which need root),
beside plain sockets; memory, threads and latency of one engine with 1, 16, 64 and 256 idle peers.
Run alone: `python benchmarks/cost.py --quick`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import replace
from typing import Any

import lineup
import rails
from compare import Case, Pace, compare
from harness import Arms, ArmSpec, Column, Outcome
from results import Question

MIB = 1 << 20
LOOPBACK = [("127.0.0.1", "127.0.0.1")]
COUNTS = (1, 16, 64, 256)
QUICK_COUNTS = (1, 16, 64)


def tcp_spec(name: str, shaped: bool) -> ArmSpec:
    """An arm that uses only TCP."""
    if shaped:
        return rails.spec(name)
    found = lineup.known(name)
    extra = {"tent": ("TENT_TRANSPORTS", "tcp"), "nixl": ("UCX_TLS", "tcp")}
    return replace(found, env=(*found.env, extra[name])) if name in extra else found


def processor(shaped: bool, quick: bool) -> Case:
    """Bytes over TCP: what counts is the processor time."""
    ways = rails.RAILS if shaped else LOOPBACK
    columns = (
        Column("plain sockets", "bare", "streams", "limit", (("rails", ways),)),
        Column("tent.write", "tent", "write", "ours"),
        Column("gloo", "gloo", "stream", "peer"),
        Column("nixl write", "nixl", "write", "peer"),
        Column("mooncake write", "mooncake", "write", "peer"),
        Column("mptcp", "mptcp", "write", "peer"),
    )
    place = "four rails" if shaped else "loopback"
    size = 64 * MIB if quick else 256 * MIB
    return Case(f"processor time over {place}", {"bytes": size}, columns, fixed=4)


def add_processor(question: Question, case: Case, outcomes: list[Outcome]) -> None:
    """Seconds a GB of both ends, and the ratio of each round to plain sockets."""
    question.add(case, outcomes, "GB/s")
    plain = outcomes[0]
    for outcome in outcomes:
        if outcome.trouble or plain.trouble:
            continue
        each = [seconds / case.params["bytes"] * 1e9 for seconds in outcome.cpu]
        ratio = statistics.median(a / b for a, b in zip(outcome.cpu, plain.cpu, strict=False))
        question.rows.append(
            {
                "case": f"{case.label}, seconds a GB",
                "column": outcome.column.label,
                "arm": outcome.column.arm,
                "role": outcome.column.role,
                "cpu_seconds_per_gb": statistics.median(each),
                "low": min(each),
                "high": max(each),
                "times_plain_sockets": ratio,
            }
        )
        print(
            f"  {outcome.column.label:<26} {statistics.median(each):.3f} s a GB "
            f"[{min(each):.3f} .. {max(each):.3f}], {ratio:.2f} x plain sockets"
        )


def idle_peers(found: Arms, question: Question, chosen: argparse.Namespace) -> None:
    """One engine, more and more peers."""
    tent = lineup.known("tent")
    found.start(replace(tent, name="crowd", module="crowd"))
    arm = found.running.get("crowd")
    if arm is None:
        return
    print("\nidle peers of one engine")
    first: dict[str, Any] = {}
    for count in QUICK_COUNTS if chosen.quick else COUNTS:
        arm.call("call", "grow", (count,), limit_s=300)
        late = arm.call("call", "latency", (300,))[1]
        row = arm.call("call", "cost", ())[0] | {
            "case": "idle peers",
            "column": "tent",
            "arm": "crowd",
            "peers": count,
            "latency_s": statistics.median(late),
        }
        first = first or row
        grown = (row["bytes"] - first["bytes"]) / max(1, count - first["peers"])
        row["bytes_per_peer"] = grown
        row["threads_more"] = row["threads"] - first["threads"]
        row["latency_ratio"] = row["latency_s"] / first["latency_s"]
        question.rows.append(row)
        print(
            f"  {count:4d} peers: {row['threads']} threads, {row['files']} descriptors, "
            f"{row['bytes'] / MIB:.1f} MiB, {grown / 1024:.1f} KiB a further peer, "
            f"8-byte read {row['latency_s'] * 1e6:.1f} us",
            flush=True,
        )
    found.stop("crowd")


def main() -> None:
    """Runs the question."""
    parser = lineup.options(__doc__ or "", "gloo,nixl,mooncake")
    parser.add_argument("--place", choices=("loopback", "rails"), default="loopback")
    chosen = parser.parse_args()
    shaped = chosen.place == "rails"
    if shaped and "RAILS_NAME" not in os.environ:
        os.execv(rails.SCRIPT, [rails.SCRIPT, "with", sys.executable, *sys.argv])
    if not shaped:
        lineup.isolate()
    allowed = ("gloo", "nixl", "mooncake", "mptcp") if shaped else ("gloo", "nixl", "mooncake")
    names = ["bare", "tent", *lineup.names(chosen, allowed)]

    def measure(found: Arms, question: Question, pace: Pace) -> None:
        case = processor(shaped, chosen.quick)
        if chosen.only in case.label:
            add_processor(question, case, compare(found, case, pace))
        for name in list(found.running):
            found.stop(name)
        if not shaped and chosen.only in "idle peers":
            idle_peers(found, question, chosen)

    specs = [tcp_spec(name, shaped) for name in names]
    lineup.run(f"cost-{chosen.place}", "GB/s", chosen, specs, measure)


if __name__ == "__main__":
    main()
