"""Stage: demo. The picture of a run: bytes per rail over time, every slice, computed and landed.

Called once by the parent process after the run. Draws with matplotlib's Agg canvas, without a
window and without touching its global state. What always holds: time runs from the start of the
prefill, and every panel has the same time axis.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from torch_tent.demo.story import Fault, Span, Story, served

INK, FAINT, PAPER = "#22262e", "#8a919e", "#ffffff"
ALARM, WELL = "#d0342c", "#2e7d4f"
# Colours that differ for colour-blind eyes as well, in order of use.
RAILS = ["#3b76c4", "#e6a03c", "#4aa88f", "#a86bb5", "#8fb844", "#d9808f", "#6bb8d9", "#8c7a6b"]
BIN_S = 0.05
MIB = float(1 << 20)
DONE = {"cut": "cut", "slow": "100× slower", "drop": "silent"}


def colour(rail: int) -> str:
    return RAILS[rail % len(RAILS)]


def draw(story: Story, path: Path) -> None:
    """Writes the picture as a PNG. Raises OSError when it cannot be written."""
    figure = Figure(figsize=(12, 9.2), dpi=130, facecolor=PAPER)
    FigureCanvasAgg(figure)
    heights = [3.2, max(1.4, 0.42 * story.rails), 2.2]
    rates, lanes, progress = figure.subplots(
        3, 1, sharex=True, height_ratios=heights, gridspec_kw={"hspace": 0.16}
    )
    figure.subplots_adjust(left=0.075, right=0.975, top=0.885, bottom=0.06)
    draw_rates(story, rates)
    draw_lanes(story, lanes)
    draw_progress(story, progress)
    for axes in (rates, lanes, progress):
        plain(axes)
        for fault in story.faults:
            mark(story, fault, axes)
    label_faults(story, rates)
    rates.set_xlim(0, story.seconds(max(story.first_token_ns, story.landed_ns)) * 1.03)
    headline(story, figure)
    figure.savefig(path, facecolor=PAPER)


def headline(story: Story, figure: Figure) -> None:
    verdict = story.verdict
    size = story.cache_bytes / MIB
    title = f"{size:.0f} MiB of KV cache over {story.rails} TCP rails, while it is computed"
    figure.text(0.075, 0.955, title, fontsize=17, fontweight="bold", color=INK)
    told = "; ".join(fault_told(story, fault) for fault in story.faults) or "no fault injected"
    figure.text(0.075, 0.926, told, fontsize=11, color=ALARM if story.faults else FAINT)
    same = "the tokens equal those of one process" if verdict.tokens_equal else "TOKENS DIFFER"
    figure.text(
        0.975, 0.926, same, fontsize=11, ha="right",
        color=WELL if verdict.tokens_equal else ALARM, fontweight="bold",
    )  # fmt: skip


def fault_told(story: Story, fault: Fault) -> str:
    healed = (
        "for good"
        if fault.healed_ns is None
        else f"healed at {story.seconds(fault.healed_ns):.2f} s"
    )
    at = story.seconds(fault.at_ns)
    return f"rail {fault.rail + 1} {DONE[fault.what]} at {at:.2f} s, {healed}"


def draw_rates(story: Story, axes: Axes) -> None:
    """What crossed each rail's relay, stacked, in bins of 50 ms."""
    end = max(story.seconds(story.landed_ns), BIN_S) + 2 * BIN_S
    edges = np.arange(0, end + BIN_S, BIN_S)
    rows = []
    for crossed in story.crossed:
        moments = [story.seconds(at) for at, _ in crossed]
        counts, _ = np.histogram(moments, bins=edges, weights=[count for _, count in crossed])
        rows.append(counts / BIN_S / 1e6)
    stacked = np.cumsum([np.zeros(len(edges) - 1), *rows], axis=0)
    for rail in range(story.rails):
        axes.fill_between(
            edges[:-1], stacked[rail], stacked[rail + 1], step="post", color=colour(rail),
            linewidth=0, alpha=0.92, label=f"rail {rail + 1}",
        )  # fmt: skip
    limit = story.rails * story.rail_bytes_per_s / 1e6
    axes.axhline(limit, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(
        0.004, limit, f"all rails at full speed: {story.rails} × "
        f"{story.rail_bytes_per_s * 8 / 1e6:.0f} Mbit/s", fontsize=8.5, color=FAINT,
        va="bottom", ha="left", transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    axes.set_ylim(0, limit * 1.28)
    axes.set_ylabel("MB/s, stacked")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.005, 1.0), ncols=8, frameon=False, fontsize=9,
        borderaxespad=0.2, handlelength=1.0, handleheight=1.0, columnspacing=1.2,
    )  # fmt: skip


def draw_lanes(story: Story, axes: Axes) -> None:
    """One lane per rail: every slice that it served; in red those that had to go elsewhere."""
    for rail in range(story.rails):
        lane = story.rails - 1 - rail
        here = served(item for item in story.slices if item.rail == rail)
        good = [bar(story, span) for item, span in here if item.acked]
        lost = [bar(story, span) for item, span in here if not item.acked]
        shades = [(colour(rail), 0.95), (colour(rail), 0.72)]  # One slice from the next.
        axes.broken_barh(good, (lane - 0.36, 0.72), facecolors=shades, linewidth=0)
        axes.broken_barh(lost, (lane - 0.36, 0.72), facecolors=ALARM, linewidth=0)
        ends = [first + length for first, length in lost]
        axes.plot(ends, [lane] * len(ends), "x", color=ALARM, markersize=6)
    for fault in story.faults:
        healed = fault.healed_ns if fault.healed_ns is not None else story.landed_ns
        lane, first = story.rails - 1 - fault.rail, story.seconds(fault.at_ns)
        axes.broken_barh(
            [(first, story.seconds(healed) - first)], (lane - 0.46, 0.92), facecolors="none",
            edgecolors=ALARM, linewidth=0, hatch="////", alpha=0.35,
        )  # fmt: skip
    axes.set_ylim(-0.6, story.rails - 0.4)
    axes.set_yticks(range(story.rails), [f"rail {story.rails - i}" for i in range(story.rails)])
    axes.set_ylabel("slices")


def bar(story: Story, span: Span) -> tuple[float, float]:
    """A span as its beginning and length in seconds; never too short to be seen."""
    return story.seconds(span[0]), max((span[1] - span[0]) / 1e9, 1e-4)


def draw_progress(story: Story, axes: Axes) -> None:
    """The cache as it was computed and as it landed; what lies between was on its way."""
    end = story.first_token_ns
    curves = []
    for key in ("began_ns", "landed_ns"):
        steps = sorted((getattr(write, key), write.bytes) for write in story.writes)
        moments = [0.0, *(story.seconds(at) for at, _ in steps), story.seconds(end)]
        total = np.cumsum([0, *(count for _, count in steps)]) / MIB
        curves.append((moments, [*total, total[-1]]))
    (computed_at, computed), (landed_at, landed) = curves
    axes.fill_between(landed_at, landed, step="post", color=RAILS[0], alpha=0.14, linewidth=0)
    axes.fill_between(computed_at, computed, step="post", color=INK, alpha=0.06, linewidth=0)
    axes.step(computed_at, computed, where="post", color=INK, linewidth=1.6)
    axes.step(landed_at, landed, where="post", color=RAILS[0], linewidth=1.6)
    top = computed[-1]
    third, half = len(computed_at) // 3, len(landed_at) // 2
    axes.text(computed_at[third], computed[third] + top * 0.05, "computed ", ha="right", color=INK)
    axes.text(landed_at[half], landed[half] - top * 0.13, "   landed", ha="left", color=RAILS[0])
    ends = [
        (story.prefilled_ns, f"prefill ends, {story.landed_early:.0%} have landed", 0.38),
        (story.landed_ns, "last byte", 0.22),
        (story.first_token_ns, "first token", 0.06),
    ]
    behind = {"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 1.5}
    for moment, text, height in ends:
        at = story.seconds(moment)
        axes.axvline(at, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
        axes.annotate(
            f"{text}, {at:.2f} s", (at, top * height), (-5, 0), textcoords="offset points",
            ha="right", fontsize=9, color=INK, bbox=behind, zorder=6,
        )  # fmt: skip
    axes.set_ylim(0, top * 1.12)
    axes.set_ylabel("MiB of cache")
    axes.set_xlabel("seconds since the prefill began")


def plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(axis="x", color="#e6e8ec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.yaxis.label.set_color(INK)
    axes.xaxis.label.set_color(INK)


def mark(story: Story, fault: Fault, axes: Axes) -> None:
    axes.axvline(story.seconds(fault.at_ns), color=ALARM, linewidth=1.3, zorder=5)
    if fault.healed_ns is not None:
        healed = story.seconds(fault.healed_ns)
        axes.axvline(healed, color=WELL, linewidth=1.3, linestyle=(0, (3, 2)), zorder=5)


def label_faults(story: Story, axes: Axes) -> None:
    """One label where several rails met their fault at the same moment."""
    top = axes.get_ylim()[1]
    whens: dict[float, list[str]] = {}
    for fault in story.faults:
        when = round(story.seconds(fault.at_ns), 1)
        whens.setdefault(when, []).append(f"rail {fault.rail + 1} {DONE[fault.what]}")
        if fault.healed_ns is not None:
            at = story.seconds(fault.healed_ns)
            axes.text(at, top * 0.9, f" rail {fault.rail + 1} healed", color=WELL, fontsize=9.5)
    for when, texts in whens.items():
        axes.text(
            when, top * 0.9, ", ".join(texts) + " ", color=ALARM, fontsize=9.5, ha="right",
            fontweight="bold",
        )  # fmt: skip
