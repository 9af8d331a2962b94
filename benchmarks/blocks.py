"""Stage: benchmarks. Question: what do scattered KV blocks cost, compared with one piece?

Blocks of one pool go to other places of another process's pool, on one host. Beside the bytes it
asks what the descriptors cost: how long the call takes, and when the first slice leaves. Run alone:
`python benchmarks/blocks.py --quick`.
"""

from __future__ import annotations

import argparse

import lineup
from compare import Case, Pace, compare
from harness import Arms, Column
from results import Question

KIB = 1 << 10
# (blocks, bytes of each, blocks of the pool they lie in)
SHAPES = ((256, 64 * KIB, 512), (4096, 16 * KIB, 8192), (100_000, 4 * KIB, 125_000))
SHARED = (("memory", "shared"),)


def contiguous(count: int, block: int) -> tuple[tuple[str, object], ...]:
    """The same bytes in one piece."""
    return (("bytes", count * block),)


def moved(count: int, block: int, pool: int, pages: str) -> Case:
    """From index arrays to the last byte; the peers' best ways beside ours."""
    piece = contiguous(count, block)
    columns = [
        Column("memcpy, one piece", "bare", "memcpy", "limit", piece),
        Column("readv, one piece", "bare", "readv", "limit", piece),
        Column("memcpy of each", "bare", "copy_blocks", "limit"),
        Column("readv, 1024 a call", "bare", "readv_blocks", "limit"),
        Column("tent.write, one piece", "tent", "write", "ours", piece),
        Column("tent.write_blocks", "tent", "write_blocks", "ours"),
        Column("tent.read_blocks", "tent", "read_blocks", "ours"),
        Column("tent shared, one piece", "tent", "write", "ours", SHARED + piece),
        Column("tent shared, blocks", "tent", "write_blocks", "ours", SHARED),
        Column("nixl by index", "nixl", "write_blocks", "peer"),
        Column("nixl, prepared", "nixl", "write_ready_blocks", "peer"),
        Column("mpi indexed type", "mpi", "write_blocks", "peer"),
        Column("gloo, packed", "gloo", "packed_blocks", "peer"),
        Column("mooncake", "mooncake", "write_blocks", "peer"),
    ]
    params = {"count": count, "block": block, "bytes": pool * block, "pages": pages}
    return Case(f"{count} x {block // KIB} KiB", params, tuple(columns))


def submitted(count: int, block: int, pool: int, pages: str) -> Case:
    """The call of write_blocks alone."""
    params = {"count": count, "block": block, "bytes": pool * block, "pages": pages}
    columns = (Column("tent.write_blocks", "tent", "submit_blocks", "ours"),)
    return Case(f"call for {count} x {block // KIB} KiB", params, columns, fixed=5)


def cases(chosen: argparse.Namespace) -> list[tuple[Case, str]]:
    """Every case with the unit of its table."""
    shapes = SHAPES[::2] if chosen.quick else SHAPES
    found = [(moved(*shape, chosen.pages), "ms") for shape in shapes]
    found += [(submitted(*shape, chosen.pages), "ms") for shape in shapes]
    return [(case, unit) for case, unit in found if chosen.only in case.label]


def main() -> None:
    """Runs the question."""
    parser = lineup.options(__doc__ or "", "nixl,mpi,gloo,mooncake")
    parser.add_argument(
        "--pages", default="huge", choices=("huge", "4k"), help="of ordinary memory"
    )
    chosen = parser.parse_args()
    lineup.isolate()
    peers = lineup.names(chosen, ("gloo", "nixl", "mpi", "mooncake"))

    def measure(found: Arms, question: Question, pace: Pace) -> None:
        for case, unit in cases(chosen):
            outcomes = compare(found, case, pace)
            question.add(case, outcomes, unit)
            for outcome in outcomes:
                first = [s for note in outcome.notes for s in note.get("first_slice_s", [])]
                if first:
                    call = sorted(outcome.seconds)[len(outcome.seconds) // 2]
                    print(
                        f"  a block costs {call / case.params['count'] * 1e9:.1f} ns in the call; "
                        f"first slice after {sorted(first)[len(first) // 2] * 1e3:.3f} ms"
                    )

    specs = [lineup.known(name) for name in ("bare", "tent", *peers)]
    lineup.run("blocks", "ms", chosen, specs, measure)


if __name__ == "__main__":
    main()
