"""Stage: demo. What the user reads: the table of the rails, the verdict, where the files are.

Called by the parent process after the run; writes to a rich console, which turns itself into plain
lines where there is no terminal. What always holds: "equal" is said only when it was compared.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from torch_tent.demo import picture, trace
from torch_tent.demo.story import Fault, Story

MIB = float(1 << 20)
DONE = {"cut": "cut", "slow": "100× slower", "drop": "silent"}


def show(story: Story, console: Console, out: Path) -> None:
    """Prints the report; writes rails.png and slices.json into `out`. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    picture.draw(story, out / "rails.png")
    trace.save(story, out / "slices.json")
    console.print(rails_table(story))
    for line in (*timing(story), *verdict(story)):
        console.print(line, highlight=False)
    console.print(f"picture  {out / 'rails.png'}", highlight=False, soft_wrap=True)
    console.print(
        f"trace    {out / 'slices.json'} (open it at ui.perfetto.dev)",
        highlight=False,
        soft_wrap=True,
    )


def rails_table(story: Story) -> Table:
    """One line per rail, and their sum."""
    table = Table(
        title=f"{story.cache_bytes / MIB:.0f} MiB of KV cache of {story.prompt_tokens} tokens",
        title_justify="left",
        caption=f"each rail is held to {story.rail_bytes_per_s * 8 / 1e6:.0f} Mbit/s, so that the "
        "transfer lasts and the fault comes mid-way;\nstall: the longest time in which nothing was "
        "delivered although there was something to move",
        caption_justify="left",
    )
    for name in ("rail", "MiB", "slices", "MB/s", "stall", "resent", "fault"):
        table.add_column(name, justify="left" if name in ("rail", "fault") else "right")
    rows = [story.rail_row(rail) for rail in range(story.rails)]
    for rail, row in enumerate(rows):
        told = "; ".join(fault_told(story, fault) for fault in story.faults if fault.rail == rail)
        table.add_row(
            f"rail {rail + 1}",
            f"{row.bytes / MIB:.1f}",
            str(row.slices),
            f"{row.bytes_per_s / 1e6:.2f}",
            f"{row.stall_s * 1e3:.0f} ms",
            str(row.resent),
            told,
        )
    table.add_section()
    whole = (story.landed_ns - story.began_ns) / 1e9
    table.add_row(
        "all",
        f"{sum(row.bytes for row in rows) / MIB:.1f}",
        str(sum(row.slices for row in rows)),
        f"{story.cache_bytes / whole / 1e6:.2f}",
        f"{story.stall_s() * 1e3:.0f} ms",
        str(story.retries),
        f"{story.fences} fences",
    )
    return table


def fault_told(story: Story, fault: Fault) -> str:
    at = f"{DONE[fault.what]} {story.seconds(fault.at_ns):.2f}"
    return (
        f"{at} s, stays"
        if fault.healed_ns is None
        else (f"{at}–{story.seconds(fault.healed_ns):.2f} s")
    )


def timing(story: Story) -> list[str]:
    """How much of the transfer the prefill hid."""
    prefilled, landed = story.seconds(story.prefilled_ns), story.seconds(story.landed_ns)
    after = story.cache_bytes / (story.rails * story.rail_bytes_per_s)
    return [
        f"prefill ended at {prefilled:.2f} s, when {story.landed_early:.0%} of the cache had "
        f"landed; the last byte landed at {landed:.2f} s",
        f"first token at {story.seconds(story.first_token_ns):.2f} s; moving the cache only after "
        f"the prefill would have added {after:.2f} s with every rail at full speed",
    ]


def verdict(story: Story) -> list[str]:
    """Whether the two processes together did what one does alone."""
    found = story.verdict
    difference = f"largest difference of a logit {found.logits_difference:.3g}"
    cache = "equals" if found.cache_equal else "DIFFERS from"
    lines = [f"the received cache {cache} the computed one, byte for byte (SHA-256)"]
    if found.tokens_equal:
        lines.append(
            f"[bold green]tokens equal[/]: all {found.tokens} generated tokens are those of one "
            f"process doing both; {difference}"
        )
    else:
        lines.append(
            f"[bold red]tokens differ[/] from those of one process doing both, after "
            f"{found.tokens_same} of {found.tokens}; {difference}"
        )
    return lines
