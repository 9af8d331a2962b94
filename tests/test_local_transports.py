"""Stage: tests. The same-host transports against a peer that writes whatever it likes into the
memory and the socket that it shares with us, and what they promise about regions.
"""

from __future__ import annotations

import mmap
import os
import random
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract_module import contract
from tests.transport_links import (
    CONTROL,
    FLOW,
    LINK,
    MIB,
    SLICE,
    Links,
    Shared,
    address,
    header,
    one_flow,
    post_control,
    post_slice,
    random_bytes,
    resources,
    transport_name,
)

pytestmark = pytest.mark.timeout(300)  # the first test compiles the module

RING, HEADERS = 65536, 4096
WRITTEN, READ, STAGING, WAITS = 0, 64, 72, 128  # in a ring's header of 192 bytes
DOORBELL, REGION, FORGET, STAGING_MEMORY = 1, 2, 3, 4
PARCEL_MAGIC = 0x50544E54
STAGED_SPACE = 2**64 - 1
GARBAGE = [2**64 - 1, 2**63, 2**32, RING + 1]


class Liar:
    """The dialer's end of a same-host link, without a transport: raw memory and a raw socket."""

    def __init__(self, kind: str) -> None:
        self.side: Any = contract().Side(transport_name(kind))
        ours, theirs = contract().open_local_channel()
        self.memory = mmap.mmap(ours[0], HEADERS + 2 * RING)
        os.close(ours[0])
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        assert self.side.connect(LINK, [*theirs, other.detach()], False, os.getpid()) == ""
        self.sent = 0
        label, fds, _, _ = socket.recv_fds(self.socket, 24, 2)
        self.slot = struct.unpack("<IIQQ", label)[2]
        self.page = mmap.mmap(fds[0], 4096)
        for fd in fds:
            os.close(fd)

    def set(self, ring: int, field: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, 192 * ring + field, value)

    def write(self, data: bytes) -> None:
        """Puts bytes on the ring as a transport does."""
        assert self.sent + len(data) <= RING
        self.memory[HEADERS + self.sent : HEADERS + self.sent + len(data)] = data
        self.sent += len(data)
        self.set(0, WRITTEN, self.sent)

    def ring(self) -> None:
        """Makes the side look at the link, as a peer that finds it awake."""
        at = 64 + self.slot // 8
        self.page[at] |= 1 << self.slot % 8

    def write_slice(self, nbytes: int, pieces: list[tuple[int, int, int]], kind: int = 1) -> None:
        self.write(header(SLICE, 1, FLOW, 0, nbytes) + struct.pack("<II", kind, len(pieces)))
        self.write(b"".join(struct.pack("<QQQ", *piece) for piece in pieces))

    def parcel(self, kind: int, id_: int, nbytes: int, fds: list[int]) -> None:
        data = struct.pack("<IIQQ", PARCEL_MAGIC, kind, id_, nbytes)
        socket.send_fds(self.socket, [data], fds)

    def heard(self) -> list[Any]:
        self.ring()
        contract().settle([self.side])
        return list(self.side.take_events())

    def down(self) -> str:
        """Polls until the link is down; returns why."""
        events = self.heard()
        assert [event.what for event in events][-1:] == ["down"]
        return str(events[-1].text)

    def close(self) -> None:
        self.side.hang_up()
        self.socket.close()
        self.memory.close()
        self.page.close()


@pytest.fixture(params=["shm", "cma"])
def liar(request: pytest.FixtureRequest) -> Iterator[Liar]:
    made = Liar(request.param)
    yield made
    made.close()


@pytest.fixture
def shm_liar() -> Iterator[Liar]:
    made = Liar("shm")
    yield made
    made.close()


def test_the_liar_can_also_tell_the_truth(liar: Liar) -> None:
    liar.write(header(CONTROL, 1, body_bytes=5) + b"truth")
    assert [event.body for event in liar.heard()] == [b"truth"]


# ---- ring positions ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", GARBAGE)
def test_a_garbage_write_position_closes_the_link(liar: Liar, value: int) -> None:
    liar.set(0, WRITTEN, value)
    assert "malformed ring" in liar.down()


def test_a_write_position_that_goes_back_closes_the_link(liar: Liar) -> None:
    liar.write(header(CONTROL, 1, body_bytes=5) + b"truth")
    assert len(liar.heard()) == 1
    liar.set(0, WRITTEN, 10)
    assert "malformed ring" in liar.down()


@pytest.mark.parametrize("value", [*GARBAGE, 1 << 40])
def test_a_garbage_read_position_closes_the_link(liar: Liar, value: int) -> None:
    liar.set(1, READ, value)
    post_control(liar.side, 1, bytes(3 * RING))
    assert "malformed ring" in liar.down()


@pytest.mark.parametrize("value", [2**64 - 1, 1 << 40, 3 * MIB])
def test_a_garbage_staging_position_closes_the_link(shm_liar: Liar, value: int) -> None:
    source = np.ones(8 * MIB, np.uint8)
    shm_liar.side.source_line(FLOW, [(address(source), source.nbytes)])
    shm_liar.set(1, STAGING, value)
    post_slice(shm_liar.side, 1, 0, source.nbytes)
    assert "malformed ring" in shm_liar.down()


@pytest.mark.parametrize("ring", [0, 1])
def test_a_garbage_flag_only_costs_time(liar: Liar, ring: int) -> None:
    liar.set(ring, WAITS, 2**64 - 1)
    post_control(liar.side, 1, bytes(RING // 2))
    liar.write(header(CONTROL, 1, body_bytes=5) + b"truth")
    assert [event.body for event in liar.heard()] == [b"truth"]


def test_random_bytes_never_crash_and_land_nowhere(liar: Liar, seed: int) -> None:
    rng = random.Random(seed)
    destination = np.zeros(MIB, np.uint8)
    liar.side.landing_line(FLOW, [(address(destination), MIB)])
    for round_ in range(60):
        other = Liar("shm" if round_ % 2 else "cma")
        start = header(SLICE, 1, FLOW, 0, rng.randint(1, MIB)) if rng.random() < 0.7 else b""
        other.side.landing_line(FLOW, [(address(destination), MIB)])
        other.write(start + struct.pack("<II", 1, rng.randint(1, 128)) + rng.randbytes(5000))
        other.set(rng.randint(0, 1), rng.choice([READ, STAGING, WAITS]), rng.getrandbits(64))
        assert other.down() != ""
        other.close()
    assert not destination.any()


# ---- slice descriptions --------------------------------------------------------------------------

DESCRIPTIONS: dict[str, tuple[int, list[tuple[int, int, int]], int]] = {
    "no pieces": (100, [], 1),
    "unknown kind": (100, [(0, 4096, 100)], 7),
    "pieces after the end": (100, [(0, 4096, 100)], 2),
    "empty piece": (100, [(0, 4096, 0), (0, 4096, 100)], 1),
    "longer than the slice": (100, [(0, 4096, 101)], 1),
    "longer in sum": (100, [(0, 4096, 60), (0, 4096, 60)], 1),
    "overflow": (100, [(0, 2**64 - 50, 100)], 1),
    "sum overflow": (100, [(0, 4096, 2**63), (0, 4096, 2**63)], 1),
    "not mapped": (100, [(9, 4096, 100)], 1),
    "not staged": (100, [(STAGED_SPACE, 0, 100)], 1),
    "too many": (200, [(0, 4096, 1)] * 129, 1),
}


@pytest.mark.parametrize("what", DESCRIPTIONS)
def test_a_malformed_description_closes_the_link(liar: Liar, what: str) -> None:
    destination = np.zeros(1000, np.uint8)
    liar.side.landing_line(FLOW, [(address(destination), 1000)])
    liar.write_slice(*DESCRIPTIONS[what])
    assert liar.down() != ""
    assert not destination.any()


@pytest.mark.parametrize("at", [4096, 4000, 2**63])
def test_a_piece_outside_its_region_closes_the_link(shm_liar: Liar, at: int) -> None:
    region, destination = Shared(4096), np.zeros(1000, np.uint8)
    region.seal()
    shm_liar.parcel(REGION, 3, 4096, [region.fd])
    shm_liar.side.landing_line(FLOW, [(address(destination), 1000)])
    shm_liar.write_slice(100, [(3, at, 100)])
    assert "not there" in shm_liar.down()
    region.close()


@pytest.mark.parametrize("position", [MIB * 2 - 50, 1 << 40, 2**64 - 200])
def test_a_staged_piece_where_none_can_be_closes_the_link(shm_liar: Liar, position: int) -> None:
    staging, destination = Shared(2 * MIB), np.zeros(1000, np.uint8)
    staging.seal()
    shm_liar.parcel(STAGING_MEMORY, 0, 2 * MIB, [staging.fd])
    shm_liar.side.landing_line(FLOW, [(address(destination), 1000)])
    shm_liar.write_slice(100, [(STAGED_SPACE, position, 100)])
    assert shm_liar.down() != ""
    assert not destination.any()
    staging.close()


# ---- what comes over the socket ------------------------------------------------------------------


def test_memory_that_may_shrink_is_not_mapped(shm_liar: Liar) -> None:
    unsealed = Shared(4096)
    shm_liar.parcel(REGION, 3, 4096, [unsealed.fd])
    assert "shrink" in shm_liar.down()
    unsealed.close()


def test_memory_smaller_than_it_says_is_not_mapped(shm_liar: Liar) -> None:
    region = Shared(4096)
    region.seal()
    shm_liar.parcel(REGION, 3, 1 << 30, [region.fd])
    assert "smaller" in shm_liar.down()
    region.close()


@pytest.mark.parametrize("what", ["slot", "no eventfd", "unsealed", "no fds", "kind", "noise"])
def test_a_malformed_parcel_closes_the_link(liar: Liar, what: str) -> None:
    contract()
    before = resources()[0]
    page, event = Shared(4096), os.eventfd(0)
    if what != "unsealed":
        page.seal()
    reader, writer = os.pipe()
    if what == "noise":
        liar.socket.sendall(random.Random(1).randbytes(24))
    elif what == "no fds":
        liar.parcel(DOORBELL, 0, 0, [])
    elif what == "kind":
        liar.parcel(9, 0, 0, [page.fd, event])
    else:
        ringer = writer if what == "no eventfd" else event
        liar.parcel(DOORBELL, 1024 if what == "slot" else 3, 0, [page.fd, ringer])
    assert liar.down() != ""
    for fd in (page.fd, event, reader, writer):
        os.close(fd)
    del page
    assert resources()[0] == before - 2  # its socket and pidfd are gone, nothing of ours stayed


def test_a_second_doorbell_and_surplus_descriptors_close_the_link(liar: Liar) -> None:
    page, event = Shared(4096), os.eventfd(0)
    page.seal()
    liar.parcel(DOORBELL, 3, 0, [page.fd, event])
    assert liar.heard() == []
    liar.parcel(DOORBELL, 3, 0, [page.fd, event, event, event])
    assert liar.down() != ""
    for fd in (page.fd, event):
        os.close(fd)


# ---- regions -------------------------------------------------------------------------------------


def test_a_registered_region_can_be_written_only_through_its_first_mapping() -> None:
    region, side = Shared(MIB), contract().Side("shm")
    assert side.register_region(1, address(region.array), MIB, region.fd) == ""
    region.array[:] = 7
    with pytest.raises(PermissionError):
        mmap.mmap(region.fd, MIB)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(region.fd, 0)
    region.close()


def test_registration_that_cannot_work_says_so(tmp_path: Path) -> None:
    region, side = Shared(MIB), contract().Side("shm")
    at = address(region.array)
    with (tmp_path / "file").open("w+b") as file:
        assert "tent.empty" in side.register_region(1, at, MIB, file.fileno())
    fixed = os.memfd_create("no-seals", 0)
    assert "MFD_ALLOW_SEALING" in side.register_region(1, at, MIB, fixed)
    os.close(fixed)
    assert side.register_region(1, at, MIB, region.fd) == ""
    assert "already" in side.register_region(2, at + 4096, 4096, region.fd)
    assert "no such region" in side.register_region(2, 0, 0, -1)
    assert side.register_region(1, 0, 0, -1) == ""
    region.close()


def test_reach_says_what_is_direct() -> None:
    with Links("shm") as links:
        region, plain = links.memory(MIB), np.zeros(1000, np.uint8)
        at = address(region)
        assert links.a.reach(LINK, [(at, MIB)]) == 2
        assert links.a.reach(LINK, [(at + 5, 10), (at + MIB - 1, 1)]) == 2
        assert links.a.reach(LINK, [(at, MIB + 1)]) == 1
        assert links.a.reach(LINK, [(at, 8), (address(plain), 8)]) == 1
        assert links.a.reach(LINK + 1, [(at, MIB)]) == 0
        assert links.b.reach(LINK, [(at, MIB)]) == 1


def test_a_region_that_goes_is_unmapped_by_the_peer_and_its_place_may_be_taken() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:transport-test")

    with Links("shm") as links:
        source, destination = one_flow(links, MIB)
        before = mapped()
        post_slice(links.a, 1, 0, MIB)
        links.drive(links.b, 2)
        assert mapped() == before + 1
        assert links.a.register_region(1, 0, 0, -1) == ""
        links.settle()
        assert mapped() == before
        source[:] = random_bytes(MIB, random.Random(9))
        post_slice(links.a, 2, 0, MIB)  # no region any more: staged
        links.drive(links.b, 2)
        assert np.array_equal(source, destination)
        assert mapped() == before


# ---- many links, and the probe -------------------------------------------------------------------


def test_many_links_share_one_doorbell() -> None:
    count = 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with Links("shm") as links:
            for link in range(100, 100 + count):
                links.connect(link)
            links.settle()
            for sequence in (1, 2):
                for link in range(100, 100 + count):
                    links.a.post(link, header(CONTROL, sequence, body_bytes=1), b"x")
            heard = links.drive(links.b, 2 * count)
            assert sorted({event.link for event in heard}) == list(range(100, 100 + count))
            for link in range(100, 100 + count):
                assert [e.sequence for e in heard if e.link == link] == [1, 2]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_probe_says_whether_and_why_not() -> None:
    word = np.array([0x0123456789ABCDEF], np.uint64)
    probe, here = contract().probe_cma, int(word.ctypes.data)
    assert probe(os.getpid(), here, int(word[0])) == ""
    assert "namespace" in probe(os.getpid(), here, 5)
    assert "address" in probe(os.getpid(), 8, 5)
    assert "namespace" in probe(0, here, 5)
    assert "cannot be seen" in probe(2**22 + 1, here, 5)
