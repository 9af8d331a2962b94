"""Stage: benchmarks. A picture of slices per rail around a fault, out of a result of rdma.py.

    python benchmarks/rdma_picture.py results/rdma-....json

Each dot is a slice at the time of its acknowledgement; below, what each rail carried in each 50 ms.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

BIN_S = 0.05


def draw(row: dict[str, Any], target: Path) -> None:
    """One fault's picture."""
    by_rail: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for at, size, rail in row["slices"]:
        by_rail[rail].append((at, size))
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 5))
    for place, (rail, slices) in enumerate(sorted(by_rail.items())):
        times = [at for at, _ in slices]
        above.scatter(times, [size / 1024 for _, size in slices], s=4, label=rail)
        rates: dict[int, float] = defaultdict(float)
        for at, size in slices:
            rates[int(at / BIN_S)] += size / BIN_S / 1e6
        bins = range(int(min(times) / BIN_S), int(max(times) / BIN_S) + 1)
        below.step(
            [n * BIN_S for n in bins],
            [rates[n] for n in bins],
            where="post",
            color=f"C{place}",
        )
    for axes in (above, below):
        for at, what in zip(row["steps_s"], ("fault", "mended"), strict=False):
            axes.axvline(at, color="black", linestyle=":", linewidth=1)
            axes.annotate(what, (at, axes.get_ylim()[1]), fontsize=8, va="top")
    above.set_ylabel("slice, KiB")
    below.set_ylabel(f"MB/s, in {BIN_S * 1e3:.0f} ms")
    below.set_xlabel("seconds")
    above.legend(loc="lower left", fontsize=8)
    gap, calm = row["windows"][0]["gap"], row["windows"][0]["calm_gap"]
    above.set_title(f"{row['case']}: longest gap {gap * 1e3:.0f} ms (calm {calm * 1e3:.0f} ms)")
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Draws every fault of the file that is named, beside it."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    matplotlib.use("agg")
    source = Path(sys.argv[1])
    for row in json.loads(source.read_text())["rows"]:
        if row.get("slices"):
            name = row["case"].removeprefix("fault: ").replace(" ", "-")
            target = source.with_name(f"{source.stem}-{name}.png")
            draw(row, target)
            print(f"written: {target}")


if __name__ == "__main__":
    main()
