"""Stage: api. What an engine tells about itself: one plain dict, Prometheus metrics, a slice trace.

Called by `Engine.stats`, by the exporter's thread and by the demonstration; any thread. Pure: it
shapes what the data plane counted. What always holds: a snapshot is plain JSON, and its counters
never go down while the engine lives.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import SettingsError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from .exporter import Exporter
    from .settings import Settings

# Upper bounds of the latency histogram: 1 us, doubling to about a minute.
LATENCY_BOUNDS_S = tuple(1e-6 * 2**k for k in range(27))

Snapshot = dict[str, Any]
# flow, peer, rail, offset, bytes, posted_ns, ended_ns, acked: as Engine.take_trace gives them.
SliceRecord = tuple[int, int, str, int, int, int, int, bool]
# GPU, way, bytes, begun_ns, ended_ns: as Engine.take_copy_trace gives them.
CopyRecord = tuple[int, str, int, int, int]


def snapshot(counted: dict[str, Any], control: dict[str, Any]) -> Snapshot:
    """Everything about one engine at this moment.

    Args: `counted` from `_engine.Engine.stats`, `control` from `ControlPlane.stats`.
    """
    names = control["names"]
    rails = [{**rail, "peer_name": names.get(rail["peer"], "")} for rail in counted["rails"]]
    return {
        "name": control["name"],
        "incarnation": control["incarnation"],
        "time_s": time.time(),
        **counted,
        "rails": rails,
        "control": control,
    }


class Counted(Protocol):
    """The part of `_engine.Engine` that is looked at."""

    def stats(self) -> dict[str, Any]: ...
    def trace(self, on: bool) -> None: ...


class Directory(Protocol):
    """The part of the control plane that is looked at."""

    def stats(self) -> dict[str, Any]: ...


class Eyes:
    """What one engine shows of itself: its snapshot, metrics and trace, as the settings ask."""

    def __init__(self, engine: Counted, control: Directory, settings: Settings) -> None:
        """Raises SettingsError when the metrics cannot be offered."""
        self._engine = engine
        self._control = control
        self._exporter = start_exporter(settings, self.look)
        if settings.trace:
            engine.trace(True)

    def look(self) -> Snapshot:
        """The snapshot of this moment."""
        return snapshot(self._engine.stats(), self._control.stats())

    def close(self) -> None:
        """Ends the metrics. Idempotent."""
        if self._exporter is not None:
            self._exporter.close()


def start_exporter(settings: Settings, source: Callable[[], Snapshot]) -> Exporter | None:
    """Offers an engine's counters to Prometheus, where the settings ask for it.

    Raises SettingsError when prometheus_client is missing or the port is another program's.
    """
    if settings.metrics_port is None:
        return None
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise SettingsError(
            f"metrics_port (TENT_METRICS_PORT) = {settings.metrics_port} needs prometheus_client: "
            "pip install 'torch_tent[metrics]'"
        ) from None
    from .exporter import Exporter

    return Exporter(settings, source)


# ---- Prometheus ----------------------------------------------------------------------------------

_RAIL_COUNTERS = {
    "bytes_sent": "Bytes that the peer has acknowledged",
    "bytes_received": "Bytes that landed here",
    "slices_sent": "Slices that the peer has acknowledged",
    "slices_received": "Slices that landed here",
    "retries": "Slices that were sent again on another link",
    "fences": "Links that were fenced",
    "links_made": "Links that came up",
    "links_lost": "Links that went down",
    "links_rested": "Links that were closed because they carried nothing",
}
_RAIL_GAUGES = {
    "up": ("up", "1 while the rail has a link"),
    "rate_bytes_per_s": ("rate_bytes_per_second", "Delivered rate, queueing excluded"),
    "base_latency_s": ("base_latency_seconds", "Smallest latency seen lately"),
    "in_flight_bytes": ("in_flight_bytes", "Sent and not yet acknowledged"),
    "window_bytes": ("window_bytes", "How much may be in flight"),
}
_TRANSFER_COUNTERS = {
    "retries": "Slices that were sent again",
    "fences": "Links that were fenced",
    "suspects": "Times that a rail was suspected",
    "twins": "Slices that were late on a rail and also went over another one",
}


def metrics(snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
    """The metrics of several engines, for a registry of prometheus_client."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    ends = CounterMetricFamily("tent_transfers", "Transfers that ended", labels=["engine", "end"])
    running = GaugeMetricFamily("tent_transfers_running", "Transfers now", labels=["engine"])
    for each in snapshots:
        for end in ("done", "failed"):
            ends.add_metric([each["name"], end], each["transfers"][end])
        running.add_metric([each["name"]], each["transfers"]["outstanding"])
    yield ends
    yield running
    for key, text in _TRANSFER_COUNTERS.items():
        counter = CounterMetricFamily(f"tent_{key}", text, labels=["engine"])
        for each in snapshots:
            counter.add_metric([each["name"]], each["transfers"][key])
        yield counter
    labels = ["engine", "peer", "rail", "kind"]
    for key, text in _RAIL_COUNTERS.items():
        family = CounterMetricFamily(f"tent_rail_{key}", text, labels=labels)
        for facts, rail in _rails(snapshots):
            family.add_metric(facts, rail[key])
        yield family
    for key, (name, text) in _RAIL_GAUGES.items():
        gauge = GaugeMetricFamily(f"tent_rail_{name}", text, labels=labels)
        for facts, rail in _rails(snapshots):
            gauge.add_metric(facts, float(rail[key]))
        yield gauge
    yield _latency(snapshots)


def _rails(snapshots: Sequence[Snapshot]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Each rail with its labels. A peer that came back has the same ones: they are added up."""
    for each in snapshots:
        merged: dict[tuple[str, str, str], dict[str, Any]] = {}
        for rail in each["rails"]:
            facts = (rail["peer_name"], rail["rail"], rail["kind"])
            before = merged.get(facts)
            if before is None:
                merged[facts] = dict(rail)
                continue
            for key in _RAIL_COUNTERS:
                before[key] += rail[key]
            if rail["up"]:
                before |= {key: rail[key] for key in _RAIL_GAUGES}
        for facts, rail in merged.items():
            yield [each["name"], *facts], rail


def _latency(snapshots: Sequence[Snapshot]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(
        "tent_transfer_seconds",
        "From the call to the end of successful transfers",
        labels=["engine", "operation"],
    )
    for each in snapshots:
        for operation, found in each["latency"].items():
            buckets = coarse(found["buckets"], found["count"])
            family.add_metric([each["name"], operation], buckets, found["sum_s"])
    return family


def coarse(buckets: Iterable[Sequence[float]], count: int) -> list[tuple[str, float]]:
    """Cumulative counts at LATENCY_BOUNDS_S, which are the same in every scrape.

    A fine bucket belongs to the first bound that is not below its own upper end.
    """
    fine = sorted((upper, number) for upper, number in buckets)
    found: list[tuple[str, float]] = []
    total, place = 0.0, 0
    for bound in LATENCY_BOUNDS_S:
        while place < len(fine) and fine[place][0] <= bound * (1 + 1e-9):
            total += fine[place][1]
            place += 1
        found.append((f"{bound:.6g}", total))
    return [*found, ("+Inf", float(count))]


# ---- the slice trace -----------------------------------------------------------------------------


def chrome_trace(
    records: Sequence[SliceRecord],
    peer_name: Callable[[int], str],
    process: str = "torch_tent",
    copies: Sequence[CopyRecord] = (),
) -> dict[str, Any]:
    """The trace of slices as Perfetto (ui.perfetto.dev) and chrome://tracing read it.

    One track per rail, and one more for each slice that is under way on it at the same time. A
    slice that was not acknowledged has the category "lost". `copies` from and to GPUs have tracks
    of their own, from when they were queued until they were seen to be done.
    """
    lanes = _Lanes()
    for flow, peer, rail, offset, size, posted, ended, acked in sorted(records, key=_posted):
        facts = {"offset": offset, "bytes": size, "rail": rail, "acknowledged": acked}
        kind = "slice" if acked else "lost"
        title = f"{rail} to {peer_name(peer)}"
        lanes.add((peer, rail), title, posted, ended, f"transfer {flow}", kind, facts)
    for device, way, size, begun, ended in sorted(copies, key=lambda copy: copy[3]):
        title = f"cuda:{device}, copies {way}"
        lanes.add((device, title), title, begun, ended, f"copy {way}", "copy", {"bytes": size})
    events = [_named("process_name", 0, process), *lanes.events, *lanes.names()]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


class _Lanes:
    """The spans of each kind on as many tracks as there are at the same time."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._tracks: dict[tuple[int, str, int], tuple[int, str]] = {}
        self._busy: dict[tuple[int, str], list[tuple[int, int]]] = {}

    def add(
        self,
        key: tuple[int, str],
        title: str,
        begun: int,
        ended: int,
        name: str,
        category: str,
        facts: dict[str, Any],
    ) -> None:
        """A span, in nanoseconds; spans of one key come in the order of their begins."""
        # The lane that has been free for longest, or a new one.
        busy = self._busy.setdefault(key, [])
        lane = len(busy)
        if busy and busy[0][0] <= begun:
            lane = heapq.heappop(busy)[1]
        heapq.heappush(busy, (ended, lane))
        more = f" ({lane + 1})" if lane else ""
        track, _ = self._tracks.setdefault((*key, lane), (len(self._tracks) + 1, title + more))
        self.events.append(
            {
                "name": name,
                "cat": category,
                "ph": "X",
                "ts": begun / 1e3,
                "dur": max(0, ended - begun) / 1e3,
                "pid": 0,
                "tid": track,
                "args": facts,
            }
        )

    def names(self) -> list[dict[str, Any]]:
        """What the tracks are called."""
        return [_named("thread_name", track, title) for track, title in self._tracks.values()]


def write_chrome_trace(
    path: Path | str,
    records: Sequence[SliceRecord],
    peer_name: Callable[[int], str],
    process: str = "torch_tent",
    copies: Sequence[CopyRecord] = (),
) -> None:
    """Writes `chrome_trace` to a file."""
    Path(path).write_text(json.dumps(chrome_trace(records, peer_name, process, copies)))


def _posted(record: SliceRecord) -> int:
    return record[5]


def _named(what: str, track: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": 0, "tid": track, "args": {"name": name}}
