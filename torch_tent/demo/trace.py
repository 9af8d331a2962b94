"""Stage: demo. The trace of a run as Chrome's JSON, which ui.perfetto.dev opens: every slice.

Called once by the parent process after the run; pure but for the file it writes. What always
holds: one track per rail, and nothing on a track overlaps, so that each slice is seen alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch_tent.demo.story import Story, served

PREFILL, DECODE = 1, 2
COMPUTE, WRITES, RAIL = 1, 2, 10  # Tracks of the prefill process; rail i is RAIL + i.
NOTES, TOKENS = 1, 2  # Tracks of the decode process.

Event = dict[str, Any]


def save(story: Story, path: Path) -> None:
    """Writes the trace. Raises OSError when it cannot be written."""
    found = {"displayTimeUnit": "ms", "traceEvents": list(events(story))}
    path.write_text(json.dumps(found, separators=(",", ":")))


def events(story: Story) -> Iterator[Event]:
    """Every event; times are microseconds since the prefill began."""
    yield from names(story)
    yield span(story, PREFILL, COMPUTE, "prefill", story.began_ns, story.prefilled_ns)
    for write in story.writes:
        name = f"chunk {write.chunk} layer {write.layer}"
        place = {"chunk": write.chunk, "layer": write.layer, "bytes": write.bytes}
        yield instant(story, PREFILL, WRITES, f"write {name}", write.began_ns, place)
        yield instant(story, DECODE, NOTES, f"landed {name}", write.landed_ns, place)
    for rail in range(story.rails):
        for item, (first, last) in served(s for s in story.slices if s.rail == rail):
            name = f"transfer {item.transfer}" if item.acked else f"lost {item.transfer}"
            details = {
                "transfer": item.transfer,
                "offset": item.offset,
                "bytes": item.bytes,
                "acked": item.acked,
                "posted_us": microseconds(story, item.posted_ns),
                "journey_us": (item.ended_ns - item.posted_ns) / 1e3,
            }
            yield span(story, PREFILL, RAIL + rail, name, first, last, details)
    for fault in story.faults:
        track = RAIL + fault.rail
        yield instant(story, PREFILL, track, f"fault: {fault.what}", fault.at_ns, {}, "g")
        if fault.healed_ns is not None:
            yield instant(story, PREFILL, track, "healed", fault.healed_ns, {}, "g")
    for index, (first, last) in enumerate(zip(story.token_starts(), story.tokens_ns, strict=True)):
        yield span(story, DECODE, TOKENS, f"token {index}", first, last)


def names(story: Story) -> Iterator[Event]:
    """What the processes and tracks are called, and in which order they are shown."""
    tracks = [(PREFILL, COMPUTE, "compute"), (PREFILL, WRITES, "writes")]
    tracks += [(PREFILL, RAIL + rail, f"rail {rail + 1}") for rail in range(story.rails)]
    tracks += [(DECODE, NOTES, "notifications"), (DECODE, TOKENS, "generate")]
    for process, name in ((PREFILL, "prefill"), (DECODE, "decode")):
        yield {"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": {"name": name}}
    for process, track, name in tracks:
        place = {"ph": "M", "pid": process, "tid": track}
        yield {**place, "name": "thread_name", "args": {"name": name}}
        yield {**place, "name": "thread_sort_index", "args": {"sort_index": track}}


def microseconds(story: Story, moment_ns: int) -> float:
    return (moment_ns - story.began_ns) / 1e3


def span(
    story: Story,
    process: int,
    track: int,
    name: str,
    first_ns: int,
    last_ns: int,
    details: Event | None = None,
) -> Event:
    return {
        "ph": "X",
        "pid": process,
        "tid": track,
        "name": name,
        "ts": microseconds(story, first_ns),
        "dur": (last_ns - first_ns) / 1e3,
        "args": details or {},
    }


def instant(
    story: Story,
    process: int,
    track: int,
    name: str,
    at_ns: int,
    details: Event,
    scope: str = "t",
) -> Event:
    """Scope: "t" is a mark on the track, "g" a line through the whole trace."""
    return {
        "ph": "i",
        "s": scope,
        "pid": process,
        "tid": track,
        "name": name,
        "ts": microseconds(story, at_ns),
        "args": details,
    }
