"""Stage: benchmarks. Question: how fast does one tensor get from one process to another?

Latency and bandwidth by size on one host: two-sided by torch.distributed and by tent.send,
one-sided writes and reads, ordinary and shared memory. Run alone:
`python benchmarks/p2p.py --quick`.
"""

from __future__ import annotations

import argparse

import lineup
from compare import Case, Pace, compare
from harness import Arms, Column
from results import Question

KIB, MIB = 1 << 10, 1 << 20
LATENCY_SIZES = (8, 4 * KIB, 64 * KIB)
BULK_SIZES = (64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 512 * MIB)
QUICK_BULK = (64 * KIB, MIB, 64 * MIB)
SHARED = (("memory", "shared"),)


def size_name(size: int) -> str:
    """8 B, 64 KiB, 512 MiB."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def latency(size: int) -> Case:
    """A round trip; the table shows it whole."""
    columns = [
        Column("spin on memory", "bare", "pingpong", "limit", (("how", "spin"),)),
        Column("TCP, blocking", "bare", "pingpong", "limit", (("how", "tcp"),)),
        Column("TCP, polled", "bare", "pingpong", "limit", (("how", "tcp_busy"),)),
        Column("tent dist", "tent", "pingpong", "ours"),
        Column("tent.send", "tent", "message_pingpong", "ours"),
        Column("gloo", "gloo", "pingpong", "peer"),
        Column("mpi", "mpi", "pingpong", "peer"),
    ]
    return Case(f"round trip {size_name(size)}", {"bytes": size}, tuple(columns))


def completion(size: int) -> Case:
    """One-sided: from the call until it is known to have landed."""
    columns = [
        Column("process_vm_readv", "bare", "readv", "limit"),
        Column("tent.write", "tent", "write", "ours"),
        Column("tent.read", "tent", "read", "ours"),
        Column("tent.write shared", "tent", "write", "ours", SHARED),
        Column("nixl write", "nixl", "write", "peer"),
        Column("nixl read", "nixl", "read", "peer"),
        Column("mooncake write", "mooncake", "write", "peer"),
    ]
    return Case(f"one-sided {size_name(size)}", {"bytes": size}, tuple(columns))


def wake() -> Case:
    """8 bytes to a waiter that sleeps: one way."""
    columns = [
        Column("eventfd", "bare", "wake", "limit", (("how", "eventfd"),)),
        Column("futex", "bare", "wake", "limit", (("how", "futex"),)),
        Column("TCP, blocking", "bare", "wake", "limit", (("how", "tcp"),)),
        Column("eventfd, from Python", "bare", "python_wake", "limit"),
        Column("tent dist", "tent", "wake", "ours"),
        Column("tent.send", "tent", "message_wake", "ours"),
        Column("gloo", "gloo", "wake", "peer"),
        Column("mpi", "mpi", "wake", "peer"),
    ]
    return Case("wake a sleeper, 8 B, one way", {"bytes": 8}, tuple(columns), fixed=100)


def bulk(size: int, pages: str) -> Case:
    """Bytes one way, as fast as they go."""
    columns = [
        Column("memcpy", "bare", "memcpy", "limit"),
        Column("process_vm_readv", "bare", "readv", "limit"),
        Column("tent.write shared", "tent", "write", "ours", SHARED),
        Column("tent.read shared", "tent", "read", "ours", SHARED),
        Column("tent.write", "tent", "write", "ours"),
        Column("tent.read", "tent", "read", "ours"),
        Column("tent dist", "tent", "stream", "ours"),
        Column("tent.send", "tent", "message_stream", "ours"),
        Column("gloo", "gloo", "stream", "peer"),
        Column("nixl write", "nixl", "write", "peer"),
        Column("nixl read", "nixl", "read", "peer"),
        Column("mpi", "mpi", "stream", "peer"),
        Column("mooncake write", "mooncake", "write", "peer"),
    ]
    return Case(
        f"{size_name(size)}, {pages} pages", {"bytes": size, "pages": pages}, tuple(columns)
    )


def cases(chosen: argparse.Namespace) -> list[tuple[Case, str]]:
    """Every case with the unit of its table."""
    pages = chosen.pages
    sizes = QUICK_BULK if chosen.quick else BULK_SIZES
    found = [
        (latency(size), "us") for size in (LATENCY_SIZES[:1] if chosen.quick else LATENCY_SIZES)
    ]
    found += [(completion(size), "us") for size in ((8,) if chosen.quick else (8, 4 * KIB))]
    found.append((wake(), "us"))
    found += [(bulk(size, pages), "GB/s") for size in sizes]
    if not chosen.quick:
        other = "4k" if pages == "huge" else "huge"
        found.append((bulk(64 * MIB, other), "GB/s"))
    return [(case, unit) for case, unit in found if chosen.only in case.label]


def main() -> None:
    """Runs the question."""
    parser = lineup.options(__doc__ or "", "gloo,nixl,mpi,mooncake")
    parser.add_argument(
        "--pages", default="huge", choices=("huge", "4k"), help="of ordinary memory"
    )
    chosen = parser.parse_args()
    lineup.isolate()
    peers = lineup.names(chosen, ("gloo", "nixl", "mpi", "mooncake"))

    def measure(found: Arms, question: Question, pace: Pace) -> None:
        for case, unit in cases(chosen):
            question.add(case, compare(found, case, pace), unit)

    specs = [lineup.known(name) for name in ("bare", "tent", *peers)]
    lineup.run("p2p", "GB/s", chosen, specs, measure)


if __name__ == "__main__":
    main()
