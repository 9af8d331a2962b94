"""Stage: benchmarks. Question: how near does one engine over RDMA come to verbs alone?

Writes and reads over one rail and over two, small ones, and two rails of which one is held to a
tenth, beside perftest's tools. Needs two rails as the virtual machine of tests/rdma_vm has them:
`make bench-rdma`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lineup
from compare import Case, Pace, compare, say
from harness import Arms, ArmSpec, Column
from p2p import size_name
from rdma_faults import measure_faults
from results import Question

sys.path.insert(0, str(lineup.ROOT))
from torch_tent.rdma_ports import rdma_ports

KIB, MIB = 1 << 10, 1 << 20
SLOW_RAIL = "rail1a"
DEEP = (("depth", 16),)  # the tools keep 128 on the way
# Transfers of a round, for the tools and for us: so many that a start, and what a rail can do is
# learned, are a small part of it.
REPEATS = {MIB: 32, 64 * KIB: 256}
SLOW_LABEL = "two rails, one at a tenth, write 1 MiB"


def rails() -> list[dict[str, Any]]:
    """The rails, as arms/perftest.py wants them: rxe0a to rxe0b, rxe1a to rxe1b."""
    found = {port.device: port for port in rdma_ports() if not port.trouble}
    pairs = [(found[name], found.get(f"{name[:-1]}b")) for name in found if name.endswith("a")]
    listed = []
    for near, far in pairs:
        if far is None or near.gid is None or far.gid is None:
            continue
        listed.append(
            {
                "client": near.device,
                "client_gid": near.gid.index,
                "server": far.device,
                "server_gid": far.gid.index,
                "address": str(far.gid.ip),
            }
        )
    if len(listed) < 2:
        raise SystemExit("rdma.py needs two RDMA rails: make bench-rdma runs it where they are")
    return listed


def tent(name: str, listed: list[dict[str, Any]]) -> ArmSpec:
    """An engine pair on some rails."""
    pairs = [(rail["client"], rail["server"]) for rail in listed]
    options = (("rails", pairs),)
    env = (("PYTHONPATH", str(lineup.ROOT)),)
    return ArmSpec(name, "tent_rdma", env=env, options=options, start_s=180.0)


def cases(listed: list[dict[str, Any]]) -> list[Case]:
    """What is compared, with the rails of each."""
    one, two = [("rails", listed[:1])], [("rails", listed[:2])]
    found = []
    for size in (MIB, 64 * KIB):
        params = {"bytes": size, "pages": "4k"}
        for op in ("write", "read"):
            label = f"one rail, {op} {size_name(size)}"
            columns = (
                Column(f"ib_{op}_bw", "perftest", op, "limit", tuple(one)),
                Column(f"tent.{op}", "tent one", op, "ours", DEEP),
            )
            found.append(Case(label, params, columns, REPEATS[size]))
        columns = (
            Column("ib_write_bw, both at once", "perftest", "write", "limit", tuple(two)),
            Column("tent.write", "tent two", "write", "ours", DEEP),
        )
        found.append(Case(f"two rails, write {size_name(size)}", params, columns, REPEATS[size]))
    return found + small_cases(one)


def small_cases(one: list[Any]) -> list[Case]:
    """What is waited for, beside tools that sleep until a completion comes, as our callers do.

    ib_write_lat polls at both ends, and cannot do otherwise: on one processor each waits for the
    other's time slice, so that its column is no limit.
    """
    params = {"bytes": 8, "pages": "4k", "least": 300}
    polling = {**dict(one), "least": 20}
    write = (
        Column("ib_write_lat", "perftest", "latency", "limit", tuple(polling.items())),
        Column(
            "ib_send_lat -e, there and back", "perftest", "message_and_answer", "limit", (*one,)
        ),
        Column("tent.write", "tent one", "write", "ours"),
    )
    message = (
        Column("ib_send_lat -e", "perftest", "message", "limit", (*one,)),
        Column("tent.send and recv", "tent one", "message_pingpong", "ours"),
    )
    read = (
        Column("ib_read_lat -e", "perftest", "small_read", "limit", (*one,)),
        Column("tent.read", "tent one", "read", "ours"),
    )
    named = {"8 bytes, written": write, "8 bytes, sent": message, "8 bytes, read": read}
    return [Case(label, params, columns) for label, columns in named.items()]


@contextmanager
def shaped(gbit: float) -> Iterator[None]:
    """One rail held to a rate, in the direction of the writes."""
    words = ["tc", "qdisc", "replace", "dev", SLOW_RAIL, "root", "tbf"]
    words += ["rate", f"{round(gbit * 1e6)}kbit", "burst", "32kb", "latency", "400ms"]
    subprocess.run(words, check=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", SLOW_RAIL, "root"], check=True)


def one_slow(found: Arms, question: Question, pace: Pace, listed: list[dict[str, Any]]) -> None:
    """One of two rails at a tenth of what verbs alone reach on it; the limit is what is left."""
    params = {"bytes": MIB, "pages": "4k", "sum": True}
    plain = Column("ib_write_bw", "perftest", "write", "limit", (("rails", listed[:1]),))
    alone = compare(found, Case("", params, (plain,)), Pace(rounds=3, budget_s=pace.budget_s))
    if not alone or alone[0].trouble:
        say(f"skipped: {SLOW_LABEL}: what one rail can do is not known")
        return
    columns = (
        Column("ib_write_bw, both at once", "perftest", "write", "limit", (("rails", listed[:2]),)),
        Column("tent.write", "tent two", "write", "ours", DEEP),
    )
    case = Case(SLOW_LABEL, params, columns, REPEATS[MIB])
    with shaped(0.1 * 8e-9 * MIB / statistics.median(alone[0].seconds)):
        question.add(case, compare(found, case, pace))


def main() -> None:
    """Runs the question."""
    chosen = lineup.options(__doc__ or "", "none").parse_args()
    listed = rails()

    def measure(found: Arms, question: Question, pace: Pace) -> None:
        for case in cases(listed):
            if chosen.only in case.label:
                unit = "us" if case.params["bytes"] == 8 else "GB/s"
                question.add(case, compare(found, case, pace), unit)
        if chosen.only in SLOW_LABEL:
            one_slow(found, question, pace, listed)
        measure_faults(found, question, chosen, "tent two")

    one, two = tent("tent one", listed[:1]), tent("tent two", listed[:2])
    perftest = ArmSpec("perftest", "perftest", ranks=1)
    lineup.run("rdma", "GB/s", chosen, [perftest, one, two], measure)


if __name__ == "__main__":
    main()
