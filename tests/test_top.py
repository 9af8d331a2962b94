"""Tests of top.py: rates are of one window, and the table shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_telemetry import RAIL, made
from torch_tent import __main__, top


def at(time_s: float, incarnation: str = "00", **changes: Any) -> dict[str, Any]:
    shown = made(rails=[{**RAIL, **changes}])
    return {**shown, "time_s": time_s, "incarnation": incarnation}


def test_rates_are_bytes_over_the_time_between_the_snapshots() -> None:
    before = [at(10.0, bytes_sent=1_000_000, bytes_received=0)]
    [row] = top.rates(before, [at(12.0, bytes_sent=5_000_000, bytes_received=500)])
    assert (row.sent_bytes_per_s, row.received_bytes_per_s) == (2e6, 250.0)
    assert (row.engine, row.peer, row.rail, row.up) == ("rank 0", "rank 1", "tcp a>b", True)


def test_what_did_not_move_or_is_new_has_no_rate() -> None:
    same = at(10.0, bytes_sent=7)
    assert [row.sent_bytes_per_s for row in top.rates([same], [same])] == [0.0]
    assert [row.sent_bytes_per_s for row in top.rates([], [same])] == [0.0]
    other = at(12.0, incarnation="01", bytes_sent=7)
    assert [row.sent_bytes_per_s for row in top.rates([same], [other])] == [0.0]


def test_the_command_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(top, "snapshot_folder", lambda port: tmp_path)
    monkeypatch.delenv("TENT_METRICS_PORT", raising=False)
    arguments = ["top", "--once", "--interval", "0", "--port", "9"]
    assert __main__.main(arguments) == 1
    assert "no engine" in capsys.readouterr().out
    (tmp_path / "1.json").write_text(json.dumps(at(1.0, up=False)))
    assert __main__.main(arguments) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["engine", "peer", "rail", "state"]
    assert line.split("  ")[0] == "rank 0"
    assert "down" in line
    assert __main__.main(["top", "--once"]) == 1
    assert "TENT_METRICS_PORT" in capsys.readouterr().err
