"""Stage: tests. What the demo makes of a run: the sums of its story, its table, picture and trace.

Runs on a made-up story whose sums are known by construction: two rails, the second cut mid-way.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest
from rich.console import Console

from torch_tent.demo import report, trace
from torch_tent.demo.story import (
    Fault,
    Slice,
    Story,
    Verdict,
    Write,
    covered,
    joined,
    longest_pause,
    served,
)

MS = 1_000_000
BEGAN_NS = 77_000_000_000
PIECE = 1000


def at(ms: float) -> int:
    return BEGAN_NS + int(ms * MS)


@pytest.fixture
def story() -> Story:
    """40 writes of 1000 bytes, one begun each 10 ms; each takes 15 ms. Even ones go over rail 0,
    odd ones over rail 1, which is cut at 205 ms: the slice on it is lost, and rail 0 takes it and
    the odd ones that follow, until rail 1 heals at 305 ms."""
    writes, slices, crossed = [], [], ([], [])
    for number in range(40):
        began = 10.0 * number
        odd = number % 2 == 1
        broken = odd and 200 <= began < 305
        if began == 210:
            slices.append(Slice(number, 1, 0, PIECE, at(204), at(220), False))
        rail = 1 if odd and not broken else 0
        slices.append(Slice(number, rail, 0, PIECE, at(began), at(began + 15), True))
        crossed[rail].append((at(began + 14), PIECE))
        writes.append(
            Write(number // 4, number % 4, PIECE, at(began), at(began + 16), at(began + 15))
        )
    return Story(
        prompt_tokens=640,
        rails=2,
        rail_bytes_per_s=100e3,
        began_ns=BEGAN_NS,
        prefilled_ns=at(300),
        writes=writes,
        slices=slices,
        crossed=crossed,
        faults=[Fault(1, "cut", at(205), at(305))],
        retries=1,
        fences=1,
        verdict=Verdict(True, 3, 3, True, 0.0),
        tokens_ns=[at(420), at(430), at(440)],
    )


def test_spans_are_joined_and_covered() -> None:
    assert joined([(5, 7), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 7)]
    assert covered([(5, 7), (0, 2), (1, 3)]) == 5
    assert covered([]) == 0


def test_the_longest_pause_counts_only_while_there_is_work() -> None:
    assert longest_pause([2, 5], [(0, 6)]) == 3
    assert longest_pause([2, 50], [(0, 6), (48, 51)]) == 4  # The idle time is nobody's.
    assert longest_pause([], [(10, 30)]) == 20
    assert longest_pause([], []) == 0


def test_served_slices_do_not_overlap_and_keep_the_busy_time() -> None:
    posted_together = [Slice(1, 0, n, 1, 100, 100 + 10 * (n + 1), True) for n in range(3)]
    later = Slice(2, 0, 0, 1, 200, 205, True)
    spans = [span for _, span in served([later, *reversed(posted_together)])]
    assert spans == [(100, 110), (110, 120), (120, 130), (200, 205)]
    assert sum(last - first for first, last in spans) == covered(
        (s.posted_ns, s.ended_ns) for s in [later, *posted_together]
    )


def test_the_rows_add_up(story: Story) -> None:
    whole, broken = story.rail_row(0), story.rail_row(1)
    assert (whole.bytes, whole.slices, whole.resent) == (25 * PIECE, 25, 0)
    assert (broken.bytes, broken.slices, broken.resent) == (15 * PIECE, 15, 1)
    assert whole.bytes + broken.bytes == story.cache_bytes == 40 * PIECE
    # Rail 1 delivered at 205 ms (begun at 190) and then at 325 ms (begun at 310).
    assert broken.stall_s == pytest.approx(0.120)
    assert story.stall_s() == pytest.approx(0.015)  # the first slice: nothing came before it
    assert broken.bytes_per_s == pytest.approx(15 * PIECE / (15 * 0.015))


def test_the_overlap_with_the_prefill(story: Story) -> None:
    assert story.landed_ns == at(405)
    assert story.first_token_ns == at(420)
    assert story.landed_early == pytest.approx(29 / 40)  # begun until 280 ms, landed until 295


def test_show_writes_a_table_a_picture_and_a_trace(story: Story, tmp_path: Path) -> None:
    console = Console(record=True, width=100, force_terminal=False)
    report.show(story, console, tmp_path / "new" / "folder")
    text = " ".join(console.export_text().split())
    assert "tokens equal: all 3 generated tokens" in text
    assert "│ rail 2 │ 0.0 │ 15 │ 0.07 │ 120 ms │ 1 │ cut 0.20–0.30 s" in text
    picture = (tmp_path / "new/folder/rails.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    assert json.loads((tmp_path / "new/folder/slices.json").read_text())["traceEvents"]


def test_a_difference_is_not_called_equal(story: Story, tmp_path: Path) -> None:
    worse = dataclasses.replace(story, verdict=Verdict(False, 3, 1, False, 2.5))
    console = Console(record=True, width=100, force_terminal=False)
    report.show(worse, console, tmp_path)
    text = " ".join(console.export_text().split())
    assert "tokens differ from those of one process doing both, after 1 of 3" in text
    assert "DIFFERS" in text
    assert "equal" not in text


def test_the_trace_has_every_slice_on_its_rails_track(story: Story) -> None:
    found = list(trace.events(story))
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in found if e["name"] == "thread_name"}
    spans = defaultdict(list)
    for event in found:
        if event["ph"] == "X":
            spans[names[event["pid"], event["tid"]]].append(event)
    assert len(spans["rail 1"]) == 25
    assert len(spans["rail 2"]) == 16
    assert len(spans["generate"]) == 3
    lost = [e for e in spans["rail 2"] if not e["args"]["acked"]]
    assert [e["args"]["transfer"] for e in lost] == [21]
    assert sum(e["args"]["bytes"] for e in [*spans["rail 1"], *spans["rail 2"]]) == 41 * PIECE
    for track in spans.values():
        ordered = sorted(track, key=lambda e: (e["ts"], e["dur"]))
        for before, after in itertools.pairwise(ordered):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-6
    faults = [e for e in found if e["ph"] == "i" and e["s"] == "g"]
    assert [(e["name"], e["ts"]) for e in faults] == [("fault: cut", 205e3), ("healed", 305e3)]
