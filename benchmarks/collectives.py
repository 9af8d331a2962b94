"""Stage: benchmarks. Question: how fast are the collectives, by size and number of ranks?

all_reduce, all_gather, all_to_all and broadcast on one host, the same calls of torch.distributed
over tent and over gloo. Sizes are bytes of one rank's result. Run alone:
`python benchmarks/collectives.py --quick`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import lineup
from compare import Case, Pace, compare
from harness import Arms, Column
from p2p import KIB, MIB, size_name
from results import Question

NAMES = ("all_reduce", "all_gather", "all_to_all", "broadcast")
SIZES = (8 * KIB, 64 * KIB, 512 * KIB, 4 * MIB, 64 * MIB)
QUICK_SIZES = (8 * KIB, 512 * KIB, 16 * MIB)


def case(name: str, size: int, world: int) -> Case:
    """One collective of one size."""
    columns = (
        Column("tent", f"tent-{world}", name, "ours"),
        Column("gloo", f"gloo-{world}", name, "peer"),
    )
    params = {"bytes": size, "ranks": world}
    return Case(f"{name} {size_name(size)}, {world} ranks", params, columns)


def measure(found: Arms, question: Question, pace: Pace, chosen: argparse.Namespace) -> None:
    """World after world, so that no more processes live than one of them needs."""
    sizes = QUICK_SIZES if chosen.quick else SIZES
    peers = [name for name in ("gloo",) if name in lineup.names(chosen, ("gloo",))]
    for world in (int(text) for text in chosen.ranks.split(",")):
        for name in ("tent", *peers):
            found.start(replace(lineup.known(name), name=f"{name}-{world}", ranks=world))
        question.versions |= found.versions()
        for name in NAMES:
            for size in sizes:
                one = case(name, size, world)
                if chosen.only in one.label:
                    question.add(one, compare(found, one, pace))
        for name in list(found.running):
            found.stop(name)


def main() -> None:
    """Runs the question."""
    parser = lineup.options(__doc__ or "", "gloo")
    parser.add_argument("--ranks", default="", help="numbers of ranks, with commas between")
    chosen = parser.parse_args()
    chosen.ranks = chosen.ranks or ("2" if chosen.quick else "2,4,8")
    lineup.isolate()
    lineup.run("collectives", "us", chosen, [], lambda f, q, p: measure(f, q, p, chosen))


if __name__ == "__main__":
    main()
