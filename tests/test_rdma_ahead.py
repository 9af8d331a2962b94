"""Large memory is registered in pieces, of which the next are registered in the background before a
transfer comes to them; and how `doctor` tells what a device can do. On the fake devices."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import numpy as np
import pytest

from tests.contract_module import fake_verbs
from tests.fake_rdma import Fabric
from tests.fake_sysfs import FakePort, FakeSysfs, roce_gids
from tests.pairs import until
from tests.transport_links import LINK, MIB, Links, address, one_flow, post_slice
from torch_tent.rdma_measure import TRIED_BYTES, registration
from torch_tent.settings import Settings

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = pytest.mark.timeout(300)  # the first test compiles the module

OURS, THEIRS = 0, 1  # the devices of sides a and b
PIECE = 32 * MIB
PIECES, AHEAD = 8, 4
OWNER = 7
LONG_S, SHORT_S = 20.0, 0.2


@pytest.fixture
def memory() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.zeros(PIECES * PIECE, np.uint8)  # never touched: it costs nothing


def reach(links: Links, memory: np.ndarray[tuple[int], np.dtype[np.uint8]], piece: int) -> int:
    """Whether the first bytes of a piece can be named to the peer: 2 for yes."""
    return int(links.a.reach(LINK, [(address(memory) + piece * PIECE, 10)]))


def hold(links: Links, memory: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    links.a.hold(OWNER, [(address(memory), memory.nbytes)])


def test_the_next_pieces_are_registered_before_they_are_needed(
    links: Links, fabric: Fabric, memory: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> None:
    before = fabric.regions
    hold(links, memory)
    assert fabric.regions == before  # nothing is needed yet
    assert reach(links, memory, 0) == 2
    until(lambda: fabric.regions == before + 1 + AHEAD)
    made = fabric.registrations
    for piece in range(1, 1 + AHEAD):
        assert reach(links, memory, piece) == 2
    until(lambda: fabric.regions == before + PIECES)
    assert fabric.registrations == made + PIECES - 1 - AHEAD
    assert reach(links, memory, PIECES - 1) == 2
    links.a.drop(OWNER)
    assert fabric.regions == before


def test_links_go_on_while_a_slow_device_registers(
    links: Links, fabric: Fabric, memory: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> None:
    before = fabric.regions
    hold(links, memory)
    fabric.gate(OURS, LONG_S, passing=1)  # the piece that is needed now
    assert reach(links, memory, 0) == 2
    until(lambda: fabric.waiting(OURS) == 1)
    source, destination = one_flow(links, 1000)
    for sequence in range(1, 101):
        post_slice(links.a, sequence, 0, 1000)
        assert any(event.what == "landed" for event in links.drive(links.b, 2))
    assert np.array_equal(source, destination)
    assert fabric.waiting(OURS) == 1
    assert reach(links, memory, 0) == 2
    fabric.gate(OURS, 0)
    until(lambda: fabric.regions == before + 1 + AHEAD)


def test_a_piece_that_is_under_way_is_waited_for_and_not_registered_twice(
    links: Links, fabric: Fabric, memory: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> None:
    short = memory[: 2 * PIECE]
    before = fabric.registrations
    fabric.gate(OURS, SHORT_S, passing=1)
    links.a.hold(OWNER, [(address(short), short.nbytes)])
    assert reach(links, short, 0) == 2
    until(lambda: fabric.waiting(OURS) == 1 or fabric.registrations == before + 2)
    assert reach(links, short, 1) == 2
    assert fabric.registrations == before + 2
    links.a.drop(OWNER)


def test_memory_that_ends_while_it_is_registered_leaves_nothing(
    links: Links, fabric: Fabric, memory: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> None:
    before = fabric.regions
    for turn in range(50):
        hold(links, memory)
        assert reach(links, memory, turn % PIECES) == 2
        time.sleep(0.0001 * (turn % 5))
        links.a.drop(OWNER)
        assert fabric.regions == before
    assert reach(links, memory, 0) == 1
    hold(links, memory)
    assert reach(links, memory, 0) == 2  # the links end while the rest is under way


def test_what_is_refused_in_the_background_is_said_by_who_needs_it(
    links: Links, fabric: Fabric, memory: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> None:
    before = fabric.regions
    fabric.room(OURS, PIECE)
    hold(links, memory)
    assert reach(links, memory, 0) == 2
    assert links.a.complaint() == ""
    assert reach(links, memory, 1) == 1
    text = links.a.complaint()
    assert f"memory of {PIECE} bytes cannot be registered for RDMA" in text
    assert "ulimit -l unlimited" in text
    assert "KiB are registered" in text
    links.a.drop(OWNER)
    assert fabric.regions == before
    fabric.room(OURS, 1 << 40)
    hold(links, memory)
    assert reach(links, memory, 1) == 2
    links.a.drop(OWNER)


def host(folder: Path, *devices: str) -> Path:
    sys = FakeSysfs(folder / "sys")
    for number, device in enumerate(devices):
        sys.interface(f"ens{number}")
        gids = roce_gids(f"ens{number}", "fe80::1", f"10.0.{number}.5")
        sys.device(device, [FakePort(gids=gids)], uverbs=number)
    return sys.root


def test_doctor_tells_how_quickly_each_device_registers(fabric: Fabric, tmp_path: Path) -> None:
    before = fabric.regions
    root = host(tmp_path, "fake0", "fake1", "mlx5_9")
    fabric.refuse(1, errno.ENOMEM)
    quick, small, absent = registration(Settings(), root, fake_verbs())
    assert quick[:2] == ("RDMA registration fake0", "ok")
    assert quick[2].endswith("MB/s (64 MiB of host memory)")
    assert quick[4]["bytes_per_s"] > TRIED_BYTES
    assert small[1] == "note"
    assert small[2].startswith("not possible: memory of 33554432 bytes cannot be registered")
    assert "ulimit -l unlimited" in small[3]
    assert absent[0] == "RDMA registration mlx5_9"
    assert "cannot be opened" in absent[2]
    assert fabric.regions == before


def test_doctor_calls_a_slow_device_slow(fabric: Fabric, tmp_path: Path) -> None:
    fabric.gate(0, SHORT_S)
    [found] = registration(Settings(), host(tmp_path, "fake0"), fake_verbs())
    assert found[1] == "note"
    assert found[2].startswith("slow: ")
    assert "register()" in found[3]
    assert registration(Settings(rdma_devices=("nope",)), host(tmp_path / "x", "fake0")) == []
