"""Tests of doctor, hardware and __main__: what is found is true, and the status says so."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest

from torch_tent import __main__, doctor, hardware
from torch_tent.doctor import Finding


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TENT_")]:
        monkeypatch.delenv(name)


def examined() -> dict[str, Finding]:
    return {finding.topic: finding for finding in doctor.examine()}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch_tent", *arguments],
        capture_output=True,
        text=True,
        timeout=50.0,
        env={**os.environ, **environment},
    )


def test_the_command_prints_json_and_succeeds_here() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    topics = {finding["topic"]: finding for finding in json.loads(done.stdout)}
    for topic in ("settings", "native engine", "secret", "TCP rails", "huge pages", "RDMA", "CUDA"):
        assert topics[topic]["state"] in ("ok", "note")
    assert topics["interface lo"]["facts"]["loopback"] is True
    assert topics["TCP rails"]["facts"]["addresses"][0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("environment", "topic", "complaint"),
    [
        ({"TENT_RAILS": "eth-none"}, "TCP rails", "no interface of this host"),
        ({"TENT_PEER_TIMEOUT_S": "soon"}, "settings", "TENT_PEER_TIMEOUT_S = 'soon'"),
        ({"TENT_SLICE_BYTE_MAX": "1"}, "settings", "did you mean TENT_SLICE_BYTES_MAX"),
    ],
)
def test_what_makes_an_engine_impossible_gives_status_1(
    environment: dict[str, str], topic: str, complaint: str
) -> None:
    done = run("doctor", **environment)
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if line.startswith("BAD")]
    assert topic in line
    assert complaint in line


def test_a_port_in_use_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("TENT_LISTEN_PORT", str(taken.getsockname()[1]))
        finding = examined()["TCP rails"]
    assert finding.state == "bad"
    assert "is in use" in finding.text
    assert examined()["TCP rails"].state == "ok"


def test_the_secret_is_judged_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "within this host only" in examined()["secret"].text
    monkeypatch.setenv("TENT_SECRET", "hunter2")
    findings = doctor.examine()
    found = {finding.topic: finding for finding in findings}
    assert found["secret"].state == "note"
    assert "7 bytes" in found["secret"].text
    assert "hunter2" not in doctor.as_text(findings)
    assert "hunter2" not in json.dumps([dataclasses.asdict(each) for each in findings])
    monkeypatch.setenv("TENT_SECRET", "a secret that nobody guesses")
    assert examined()["secret"].state == "ok"


def test_transports_that_are_off_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENT_TRANSPORTS", "shm")
    found = examined()
    assert found["TCP rails"].text.startswith("off")
    assert not any(finding.state == "bad" for finding in found.values())


def test_direct_reads_are_tried_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    topic = "direct reads of memory (cma)"
    found = examined()[topic]
    assert found.state == "ok" or "refused" in found.text
    monkeypatch.setattr(doctor.ctypes, "addressof", lambda word: 8)  # Nobody can read there.
    refused = examined()[topic]
    assert refused.state == "note"
    assert "refused: " in refused.text
    assert refused.advice != ""


def test_what_cuda_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "loads", lambda library: False)
    [(_, _, _, advice, _)] = hardware.cuda()
    assert "no libcuda.so.1" in advice


def test_commands_are_loaded_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ((["--help"], 0), ([], 2), (["nonsense"], 2)):
        with pytest.raises(SystemExit) as left:
            __main__.main(arguments)
        assert left.value.code == status
    shown = capsys.readouterr()
    for command, text in __main__.COMMANDS.items():
        assert command in shown.out
        assert text[:30] in shown.out
    with pytest.raises(SystemExit) as left:
        __main__.main(["doctor", "--help"])
    assert left.value.code == 0
    assert "--json" in capsys.readouterr().out
