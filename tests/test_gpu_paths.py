"""Tests of doctor's lines on GPUs: who reads whom, which RDMA devices move whose memory, how near
they are; on fake GPUs and devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract_module import fake_verbs
from tests.fake_cuda import Fake, use
from tests.fake_rdma import Fabric, misses_gpus, port
from torch_tent import cuda, gpu_paths
from torch_tent.gpu_paths import gpu_place, nearness
from torch_tent.hardware import Found
from torch_tent.settings import Settings

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = pytest.mark.timeout(120)

BRIDGE = "0000:15:01.0"


@pytest.fixture
def fake() -> Iterator[Fake]:
    found = use()
    found.c.gpudirect(True, True, True)
    found.c.peers(True)
    yield found
    found.c.gpudirect(True, True, True)
    found.c.peers(True)


@pytest.fixture
def pci(tmp_path: Path) -> Path:
    """The fake GPUs 0000:17:00.0, below a bridge, and 0000:18:00.0, at the root."""
    folder = tmp_path / "bus"
    folder.mkdir()
    for address, above, node in (("0000:17:00.0", f"{BRIDGE}/", 1), ("0000:18:00.0", "", 0)):
        device = tmp_path / f"devices/pci0000:15/{above}{address}"
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{node}\n")
        (folder / address).symlink_to(device)
    return folder


def found(patch: pytest.MonkeyPatch, pci: Path, **settings: object) -> dict[str, Found]:
    """The findings by topic, on a host with fake0 behind the bridge and fake1 elsewhere."""
    near = dataclasses.replace(port(0), pci_path=(BRIDGE, "0000:16:00.0"), numa_node=1)
    far = dataclasses.replace(port(1), pci_path=("0000:40:00.0",), numa_node=0)
    patch.setattr(gpu_paths, "rdma_ports", lambda sys: [far, near])
    given = Settings(**settings)  # type: ignore[arg-type]
    return {each[0]: each for each in gpu_paths.gpu_paths(given, pci=pci, library=fake_verbs())}


def test_every_pair_is_tried_and_the_nearest_device_comes_first(
    fabric: Fabric, fake: Fake, pci: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = fabric.regions
    lines = found(monkeypatch, pci)
    assert list(lines) == [
        "GPU to GPU (cuda_ipc)",
        "GPUDirect RDMA cuda:0, fake0",
        "GPUDirect RDMA cuda:0, fake1",
        "GPUDirect RDMA cuda:1, fake1",
        "GPUDirect RDMA cuda:1, fake0",
    ]
    texts = [(state, text) for _, state, text, _, _ in lines.values()][1:]
    assert texts == [
        ("ok", "works both ways (the same PCIe switch)"),
        ("ok", "works both ways (another NUMA node, or unknown)"),
        ("ok", "works both ways (the same NUMA node)"),
        ("ok", "works both ways (another NUMA node, or unknown)"),
    ]
    assert (fabric.regions, fabric.pairs) == (regions, 0)


def test_what_does_not_work_is_said_with_what_to_do(
    fabric: Fabric, fake: Fake, pci: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misses_gpus(fabric, 1)
    fake.c.peers(False)
    lines = found(monkeypatch, pci)
    assert lines["GPUDirect RDMA cuda:0, fake0"][1] == "ok"
    _, state, text, advice, _ = lines["GPUDirect RDMA cuda:0, fake1"]
    assert state == "note"
    assert "its memory can be registered, but reading it gave wrong bytes" in text
    assert "nvidia-smi topo" in advice
    _, state, text, advice, _ = lines["GPU to GPU (cuda_ipc)"]
    assert (state, "cuda:0 and cuda:1" in text, "NVLink" in advice) == ("note", True, True)
    fake.c.gpudirect(False, True, True)
    _, state, text, advice, _ = found(monkeypatch, pci)["GPUDirect RDMA cuda:0, fake0"]
    assert (state, "cannot be registered" in text) == ("note", True)
    assert "dma-buf" in advice
    assert "nvidia-peermem" in advice


def test_what_is_off_is_not_tried(
    fabric: Fabric, fake: Fake, pci: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registrations = fabric.registrations
    lines = found(monkeypatch, pci, transports=("tcp",))
    [(_, state, text, _, _)] = lines.values()
    assert (state, text) == ("note", "off: cuda_ipc is not in TENT_TRANSPORTS")
    assert fabric.registrations == registrations
    monkeypatch.setattr(cuda, "why_not", lambda: "there is no driver")
    assert found(monkeypatch, pci) == {}


def test_nearness_without_knowledge(pci: Path) -> None:
    assert gpu_place("", pci) == ((), -1)
    unknown = gpu_place("0000:99:00.0", pci)
    assert unknown[1] == -1
    assert nearness(unknown, port(0)) == 2
    assert nearness(((), -1), port(0)) == 2
