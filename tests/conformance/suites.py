"""Stage: tests. Which parts of PyTorch's suite for backends run, with how many ranks, and as what.

A table of values; read by the runner, by the processes that it starts and by the page's writer.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKENDS = ("tent", "gloo")


@dataclass(frozen=True)
class Suite:
    """One run of the suite's cases.

    `like`: the backend of torch whose name the name of the tested one compares equal to.
    `marker`: only cases in whose source this text stands; "" for all. `ranks` 0: the cases that
    need no process group.
    """

    name: str
    title: str
    ranks: int
    like: str = "gloo"
    marker: str = ""


SUITES = (
    Suite("three", "all cases, 3 ranks", 3),
    Suite("four", "all cases, 4 ranks", 4),
    Suite("eight", "cases that skip with fewer than 8 ranks", 8, marker="@skip_if_small_worldsize"),
    Suite("mpi", "all_to_all, which only MPI is asked for, 8 ranks", 8, "mpi", "Only MPI supports"),
    Suite("buckets", "DDP's bucket sizes, no group", 0),
)


def suite_of(name: str) -> Suite:
    """The suite of that name. Raises KeyError where there is none."""
    return {suite.name: suite for suite in SUITES}[name]
