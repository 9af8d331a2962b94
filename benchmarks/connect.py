"""Stage: benchmarks. Question: how long until the first byte?

Registration of memory by size, and setting up a connection between two engines that have never met,
until 8 bytes have landed. Run alone: `python benchmarks/connect.py --quick`.
"""

from __future__ import annotations

import lineup
from compare import Case, Pace, compare
from harness import Arms, Column
from p2p import KIB, MIB, size_name
from results import Question

SIZES = (64 * KIB, 16 * MIB, 512 * MIB)


def registration(size: int) -> Case:
    """Registering and giving back; the memory has been touched before."""
    columns = (
        Column("tent.register", "tent", "register", "ours"),
        Column("nixl", "nixl", "register", "peer"),
        Column("mooncake", "mooncake", "register", "peer"),
    )
    return Case(f"register {size_name(size)}", {"bytes": size}, columns)


def meeting() -> Case:
    """Two fresh engines (or a fresh group), until the first 8 bytes have landed."""
    columns = (
        Column("TCP connection", "bare", "meet", "limit"),
        Column("tent, new engines", "tent", "meet", "ours"),
        Column("gloo, new group", "gloo", "meet", "peer"),
        Column("nixl, new agents", "nixl", "meet", "peer"),
    )
    return Case("first 8 bytes", {"bytes": 8}, columns, fixed=1)


def main() -> None:
    """Runs the question."""
    parser = lineup.options(__doc__ or "", "gloo,nixl,mooncake")
    chosen = parser.parse_args()
    lineup.isolate()
    peers = lineup.names(chosen, ("gloo", "nixl", "mooncake"))

    def measure(found: Arms, question: Question, pace: Pace) -> None:
        cases = [(registration(s), "us") for s in (SIZES[:2] if chosen.quick else SIZES)]
        for case, unit in [*cases, (meeting(), "ms")]:
            if chosen.only in case.label:
                question.add(case, compare(found, case, pace), unit)

    specs = [lineup.known(name) for name in ("bare", "tent", *peers)]
    lineup.run("connect", "us", chosen, specs, measure)


if __name__ == "__main__":
    main()
