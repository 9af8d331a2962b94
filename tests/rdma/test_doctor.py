"""Tests of `doctor --rdma` on real verbs: it finds what works, what does not, and says whose fault
it is. What it says is compared with what the test has done to the wires."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from tests.rdma import debian, wires
from torch_tent import __main__, fabric
from torch_tent.fabric import Reach
from torch_tent.rdma_health import rdma
from torch_tent.rdma_measure import registration
from torch_tent.rdma_ports import RdmaPort, rdma_ports
from torch_tent.settings import Settings

debian.require_pyverbs()
from torch_tent import fabric_verbs  # noqa: E402


def ports() -> dict[str, RdmaPort]:
    return {port.name: port for port in rdma_ports()}


def reach(source: str, target: str) -> Reach:
    """One try, with everything opened anew."""
    prober = fabric_verbs.VerbsProber(fabric_verbs.Here(list(ports().values())))
    try:
        return prober.reach(ports()[source], ports()[target])
    finally:
        prober.close()


def test_every_port_is_found_and_healthy() -> None:
    found = ports()
    assert list(found) == [f"rxe{number}{side}:1" for number in range(wires.RAILS) for side in "ab"]
    for port in found.values():
        assert port.trouble == ""
        assert port.path_mtu_bytes == 4096
        assert port.gid is not None
        assert port.gid.kind == "RoCE v2"
        assert str(port.gid.ip).startswith("10.77.")
    topics = {topic: state for topic, state, *_ in rdma(Settings())}
    assert all(topics[f"RDMA port {name}"] == "ok" for name in found)


def test_how_quickly_every_device_registers_is_measured() -> None:
    found = registration(Settings())
    for topic, state, text, _, facts in found:
        print(topic, state, text)
        assert state in ("ok", "note")
        assert text.endswith("MB/s (64 MiB of host memory)")
        assert facts["bytes_per_s"] > 0
    devices = sorted({port.device for port in rdma_ports()})
    assert [topic for topic, *_ in found] == [f"RDMA registration {device}" for device in devices]


def test_the_command_tells_which_port_reaches_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["doctor", "--rdma"]) == 0
    shown = capsys.readouterr().out
    [line] = [line for line in shown.splitlines() if "RDMA fabric from rxe0a:1" in line]
    good, bad = line.split("does not reach")
    assert "rxe0b:1 (" in good
    assert "path MTU 4096" in good
    assert "rxe1a:1 (the far end: its address is not resolved" in bad  # Another network.
    assert "rxe1b:1 (the far end: its address is not resolved" in bad
    assert "ok   RDMA fabric: verbs work where they should" in shown


def test_two_doctors_try_the_way_between_their_hosts() -> None:
    """Here both are on one, each with its own side of the rails."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    secret, sides = b"between us", (("rxe*a",), ("rxe*b",))
    near, far = (Settings(secret=secret, rdma_devices=side) for side in sides)
    served: list[Any] = []
    listener = threading.Thread(
        target=lambda: served.extend(fabric.fabric_for_others(far, address)), daemon=True
    )
    listener.start()
    deadline = time.monotonic() + 60
    while (found := fabric.fabric_to(near, address))[0][2].startswith("nobody answers"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    listener.join(60)
    assert [state for _, state, *_ in served] == ["ok"]
    by_topic = {topic: (state, text) for topic, state, text, *_ in found}
    state, text = by_topic["RDMA fabric from rxe0a:1"]
    assert state == "ok"
    good, bad = text.split("does not reach")
    host = socket.gethostname()
    assert f"rxe0b:1 on {host} (" in good
    assert f"rxe1b:1 on {host} (" in bad
    assert by_topic["RDMA fabric"][0] == "ok"


def test_a_write_crosses_the_wire() -> None:
    before = wires.sent_bytes("rail0a")
    found = reach("rxe0a:1", "rxe0b:1")
    assert found.trouble == ""
    assert 0 < found.write_s < 1
    assert wires.sent_bytes("rail0a") - before > fabric_verbs.LARGE_BYTES


def test_silent_loss_is_no_answer_and_heals() -> None:
    wires.disturb("rail0a", "loss", "100%")
    lost = reach("rxe0a:1", "rxe0b:1")
    assert lost.trouble.startswith("no answer")
    assert "UDP port 4791" in lost.advice
    wires.heal("rail0a")
    assert reach("rxe0a:1", "rxe0b:1").trouble == ""


def test_a_port_that_is_down_is_said_and_left_out() -> None:
    wires.cut("rail1a")
    findings = {topic: (state, text) for topic, state, text, *_ in rdma(Settings())}
    assert findings["RDMA port rxe1a:1"] == ("note", findings["RDMA port rxe1a:1"][1])
    assert "rxe1a:1 is DOWN" in findings["RDMA port rxe1a:1"][1]
    tried = fabric.fabric(Settings(rdma_devices=("rxe1*",)))
    assert [state for _, state, *_ in tried] == ["bad"]
    assert "nothing to try" in tried[0][2]
