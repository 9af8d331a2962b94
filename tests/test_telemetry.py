"""Tests of telemetry.py and exporter.py: counters as metrics, one endpoint per host, the trace."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pairs import two_engines
from tests.parties import free_port, wait_until
from tests.processes import Processes
from torch_tent import exporter, telemetry
from torch_tent.errors import SettingsError
from torch_tent.exporter import Exporter
from torch_tent.settings import Settings

RAIL = {
    "peer": 3,
    "rail": "tcp a>b",
    "kind": "tcp",
    "up": True,
    "bytes_sent": 100,
    "bytes_received": 50,
    "slices_sent": 4,
    "slices_received": 2,
    "retries": 1,
    "fences": 1,
    "links_made": 2,
    "links_lost": 1,
    "links_rested": 0,
    "rate_bytes_per_s": 5e8,
    "base_latency_s": 0.001,
    "in_flight_bytes": 0,
    "window_bytes": 65536,
}
COUNTED: dict[str, Any] = {
    "transfers": {
        "done": 7,
        "failed": 1,
        "outstanding": 2,
        "retries": 3,
        "fences": 1,
        "suspects": 1,
        "twins": 4,
    },
    "rails": [RAIL],
    "latency": {"send": {"count": 3, "sum_s": 0.5, "buckets": [(2e-6, 1), (3e-6, 1), (100.0, 1)]}},
    "threads": {"count": 2},
}
CONTROL: dict[str, Any] = {
    "name": "rank 0",
    "incarnation": "00",
    "listening": [],
    "secret": False,
    "names": {3: "rank 1", 4: "rank 1"},
    "peers": {},
}


TRANSFERS = "tent_transfers_total"


def made(name: str = "rank 0", **changes: Any) -> telemetry.Snapshot:
    return telemetry.snapshot({**COUNTED, **changes}, {**CONTROL, "name": name})


def text_of(*snapshots: telemetry.Snapshot) -> str:
    """What Prometheus gets to see."""
    from prometheus_client import CollectorRegistry, generate_latest

    class All:
        def collect(self) -> Any:
            yield from telemetry.metrics(snapshots)

    registry = CollectorRegistry()
    registry.register(All())  # type: ignore[arg-type]
    return generate_latest(registry).decode()


def value(text: str, name: str, **labels: str) -> float:
    """The value of the one line with this name and these labels."""
    lines = re.findall(rf"^{name}{{(.*)}} (.*)$", text, re.MULTILINE)
    found = [
        float(number)
        for inside, number in lines
        if all(f'{key}="{wanted}"' in inside for key, wanted in labels.items())
    ]
    assert len(found) == 1, (name, labels, lines)
    return found[0]


def test_a_snapshot_is_plain_and_names_the_peers() -> None:
    shown = made()
    assert json.loads(json.dumps(shown))["rails"][0]["peer_name"] == "rank 1"
    assert shown["transfers"]["done"] == 7
    assert abs(shown["time_s"] - time.time()) < 5.0


def test_counters_of_all_engines_become_metrics() -> None:
    text = text_of(made("rank 0"), made("rank 1"))
    for engine in ("rank 0", "rank 1"):
        assert value(text, "tent_transfers_total", engine=engine, end="done") == 7
        assert value(text, "tent_transfers_total", engine=engine, end="failed") == 1
        assert value(text, "tent_transfers_running", engine=engine) == 2
        rail = {"engine": engine, "peer": "rank 1", "rail": "tcp a>b", "kind": "tcp"}
        assert value(text, "tent_rail_bytes_sent_total", **rail) == 100
        assert value(text, "tent_rail_up", **rail) == 1
        assert value(text, "tent_rail_rate_bytes_per_second", **rail) == 5e8
        assert value(text, "tent_transfer_seconds_count", engine=engine, operation="send") == 3


def test_a_peer_that_came_back_keeps_its_counters() -> None:
    again = {**RAIL, "peer": 4, "bytes_sent": 11, "rate_bytes_per_s": 7.0}
    text = text_of(made(rails=[{**RAIL, "up": False}, again]))
    assert value(text, "tent_rail_bytes_sent_total", peer="rank 1") == 111
    assert value(text, "tent_rail_rate_bytes_per_second", peer="rank 1") == 7.0


def test_latency_buckets_are_cumulative_with_fixed_bounds() -> None:
    text = text_of(made())
    send = {"engine": "rank 0", "operation": "send"}
    assert value(text, "tent_transfer_seconds_bucket", le="1e-06", **send) == 0
    assert value(text, "tent_transfer_seconds_bucket", le="2e-06", **send) == 1
    assert value(text, "tent_transfer_seconds_bucket", le="4e-06", **send) == 2
    assert value(text, "tent_transfer_seconds_bucket", le="67.1089", **send) == 2
    assert value(text, "tent_transfer_seconds_bucket", le=r"\+Inf".strip("\\"), **send) == 3


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 100)), max_size=30))
def test_no_count_is_lost_in_coarse_buckets(buckets: list[tuple[float, int]]) -> None:
    total = sum(number for _, number in buckets)
    found = [number for _, number in telemetry.coarse(buckets, total)]
    assert found == sorted(found)
    assert found[-1] == total
    for bound, number in zip(telemetry.LATENCY_BOUNDS_S, found, strict=False):
        exact = sum(count for upper, count in buckets if upper <= bound * (1 + 1e-9))
        assert number == exact


# ---- one endpoint per host -----------------------------------------------------------------------


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(exporter, "snapshot_folder", lambda port: tmp_path)
    yield free_port("127.0.0.1")
    assert list(tmp_path.iterdir()) == []


def scrape(port: int) -> str:
    with contextlib.suppress(urllib.error.URLError, ConnectionError):
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5.0)
        with answer:
            return str(answer.read().decode())
    return ""


def test_the_first_engine_serves_all_and_the_next_takes_over(port: int) -> None:
    settings = Settings(metrics_port=port)
    engines = [Exporter(settings, lambda n=n: made(f"rank {n}"), 0.05) for n in range(3)]
    try:
        assert [each.serves for each in engines] == [True, False, False]
        text = scrape(port)
        for n in range(3):
            assert value(text, "tent_transfers_total", engine=f"rank {n}", end="done") == 7
        engines.pop(0).close()
        wait_until(lambda: 'engine="rank 2"' in scrape(port))
        assert 'engine="rank 0"' not in scrape(port)
        assert sum(each.serves for each in engines) == 1
    finally:
        for each in engines:
            each.close()


def serve_until_killed(rank: int, nprocs: int, port: int, folder: str) -> None:
    exporter.snapshot_folder = lambda port: Path(folder)  # type: ignore[assignment]
    Exporter(Settings(metrics_port=port), lambda: made("killed"), 0.05)
    signal.pause()


def test_when_the_serving_process_is_killed_another_takes_over(port: int, tmp_path: Path) -> None:
    with Processes(serve_until_killed, 1, port, str(tmp_path)) as child:
        wait_until(lambda: 'engine="killed"' in scrape(port))
        ours = Exporter(Settings(metrics_port=port), lambda: made("ours"), 0.05)
        try:
            assert not ours.serves
            child.send_signal(0, signal.SIGKILL)
            wait_until(lambda: ours.serves)
            assert 'engine="ours"' in scrape(port)
            [left] = [path for path in tmp_path.glob("*.json") if path != ours._path]
            os.utime(left, (time.time() - exporter.SHOWN_S - 1,) * 2)
            assert 'engine="killed"' not in scrape(port)
            os.utime(left, (time.time() - exporter.KEPT_S - 1,) * 2)
            scrape(port)
            assert not left.exists()
        finally:
            ours.close()


def test_another_programs_port_is_an_error(port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(SettingsError, match=rf"TENT_METRICS_PORT\) = {port} cannot be served"),
    ):
        Exporter(Settings(metrics_port=port), made)


def test_engines_serve_what_they_have_done(port: int) -> None:
    with two_engines(metrics_port=port, trace=True) as pair:
        pair.exchange(torch.ones(1 << 20), torch.empty(1 << 20))
        assert {rail["peer_name"] for rail in pair.a.stats()["rails"]} == {pair.b.card.name}
        assert pair.a.card.name != pair.b.card.name
        for engine in (pair.a, pair.b):  # The other one writes within exporter.PERIOD_S.
            labels = {"engine": engine.card.name, "end": "done"}
            wait_until(lambda labels=labels: value(scrape(port), TRANSFERS, **labels) == 1)
        sent = sum(record[4] for record in pair.a.native.take_trace())
        assert sent == 4 << 20
    assert scrape(port) == ""


def test_without_a_port_nothing_is_served() -> None:
    assert telemetry.start_exporter(Settings(), made) is None


def test_a_missing_client_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(SettingsError, match=r"pip install 'torch_tent\[metrics\]'"):
        telemetry.start_exporter(Settings(metrics_port=9), made)


def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter.os, "access", lambda *_: False)
    monkeypatch.setattr(exporter.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = exporter.snapshot_folder(9)
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(SettingsError, match="not a private folder of this user"):
        exporter.snapshot_folder(9)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="not a private folder of this user"):
        exporter.snapshot_folder(9)


# ---- the slice trace -----------------------------------------------------------------------------


def test_slices_that_overlap_get_tracks_of_their_own(tmp_path: Path) -> None:
    records = [
        (5, 3, "tcp a>b", 0, 100, 1000, 9000, True),
        (5, 3, "tcp a>b", 100, 100, 2000, 8000, True),
        (5, 3, "tcp a>b", 200, 100, 8500, 9500, False),
        (6, 3, "shm", 0, 7, 1000, 1500, True),
    ]
    path = tmp_path / "trace.json"
    telemetry.write_chrome_trace(path, records, lambda peer: f"rank {peer}", "rank 0")
    events = json.loads(path.read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert len(slices) == 4
    assert sorted(names.values()) == ["shm to rank 3", "tcp a>b to rank 3", "tcp a>b to rank 3 (2)"]
    by_offset = {event["args"]["offset"]: event for event in slices if event["args"]["bytes"] > 7}
    assert names[by_offset[0]["tid"]] == "tcp a>b to rank 3"
    assert by_offset[100]["tid"] == by_offset[200]["tid"] != by_offset[0]["tid"]
    assert (by_offset[0]["ts"], by_offset[0]["dur"]) == (1.0, 8.0)  # us
    assert [by_offset[n]["cat"] for n in (0, 200)] == ["slice", "lost"]


def test_copies_of_gpus_have_tracks_of_their_own() -> None:
    copies = [(1, "out", 4096, 2000, 5000), (1, "out", 10, 3000, 4000), (0, "in", 7, 6000, 7000)]
    trace = telemetry.chrome_trace([(1, 0, "shm", 0, 1, 0, 9000, True)], str, copies=copies)
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    found = [e for e in trace["traceEvents"] if e.get("cat") == "copy"]
    assert [names[e["tid"]] for e in found] == [
        "cuda:1, copies out",
        "cuda:1, copies out (2)",
        "cuda:0, copies in",
    ]
    assert [(e["ts"], e["dur"], e["args"]["bytes"]) for e in found] == [
        (2.0, 3.0, 4096),
        (3.0, 1.0, 10),
        (6.0, 1.0, 7),
    ]


TIMES = st.tuples(st.integers(0, 50), st.integers(0, 20))


@given(st.lists(st.tuples(TIMES, st.sampled_from(["tcp a>b", "shm"])), max_size=30))
def test_no_two_slices_overlap_on_one_track(times: list[tuple[tuple[int, int], str]]) -> None:
    records = [(1, 0, rail, 0, 1, posted, posted + took, True) for (posted, took), rail in times]
    events = telemetry.chrome_trace(records, str)["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == len(records)
    for track in {event["tid"] for event in slices}:
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in slices if e["tid"] == track)
        for (_, ended), (posted, _) in itertools.pairwise(spans):
            assert ended <= posted + 1e-9
