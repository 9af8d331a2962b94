"""The tensor API while a rail fails: send and recv, write and read of torch tensors over two RDMA
rails that the control plane found and joined itself, one of which is cut or falls silent. Nobody
notices, every byte is right, and the rail comes back without anybody's doing.

The other files here go without torch, whose import takes half a minute on an emulated processor;
here it is imported once, and all tests share two engines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch.distributed import HashStore

import torch_tent as tent
from tests.pairs import Pair
from tests.rdma import wires
from tests.rdma.pairs import KIB, MIB, WAIT_S, wait_for

SIZE = 16 * MIB
TRIES = 12
RAIL = "rdma rxe1a/1>rxe1b/1"


def engine(*devices: str) -> tent.Engine:
    return tent.Engine(tent.Settings(rdma_devices=devices, transports=("rdma",)))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    near, far = engine("rxe0a", "rxe1a"), engine("rxe0b", "rxe1b")
    store = HashStore()
    yield Pair(near, far, near.join(store, 0, 2), far.join(store, 1, 2))
    near.close()
    far.close()


def noise(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (SIZE // 4,), dtype=torch.int32, generator=generator)


def rail_is_up(pair: Pair) -> bool:
    return any(rail["up"] and rail["rail"] == RAIL for rail in pair.a.native.stats()["rails"])


class Moved:
    """One way to move a tensor, so that it can be begun again; `end` is who sends the bytes."""

    def __init__(self, pair: Pair, verb: str) -> None:
        self.pair, self.verb = pair, verb
        self.end = "rail1b" if verb == "read" else "rail1a"
        self.source, self.landing = noise(1), torch.zeros(SIZE // 4, dtype=torch.int32)
        owned = self.source if verb == "read" else self.landing
        self.segment = pair.b.register(owned, access="read-write")
        self.remote = pair.a.open(self.segment.ticket())

    def begin(self) -> list[tent.Transfer]:
        pair, source, landing = self.pair, self.source, self.landing
        if self.verb == "write":
            return [pair.a.write(source, self.remote)]
        if self.verb == "read":
            return [pair.a.read(self.remote, landing)]
        received = pair.b.recv(landing, 0, group=pair.group_b)
        return [received, pair.a.send(source, 1, group=pair.group_a)]

    def in_the_middle(self) -> list[tent.Transfer]:
        """Transfers that go on, and of which rail 1 has carried something."""
        for _ in range(TRIES):
            before = wires.sent_bytes(self.end)
            under_way = self.begin()
            while not under_way[0].done():
                if wires.sent_bytes(self.end) > before + 512 * KIB:
                    return under_way
            self.arrive(under_way)
        raise AssertionError(f"{self.end} carries little")

    def arrive(self, under_way: list[tent.Transfer]) -> None:
        """They end well, and every byte is right."""
        for transfer in under_way:
            transfer.wait(WAIT_S)
        assert torch.equal(self.landing, self.source)


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        ("write", "silent loss"),
        ("read", "cut at the far end"),
        ("send", "cut here"),
        ("send", "silent loss"),
    ],
)
def test_tensors_arrive_while_a_rail_fails(pair: Pair, verb: str, fault: str) -> None:
    moved = Moved(pair, verb)
    moved.arrive(moved.begin())  # The first one makes the links.
    wait_for(lambda: rail_is_up(pair), f"{RAIL} to come up")
    fences = pair.a.stats()["transfers"]["fences"]
    moved.source.copy_(noise(2))
    under_way = moved.in_the_middle()
    wires.FAULTS[fault]()
    moved.arrive(under_way)
    moved.source.copy_(noise(3))  # What follows is hit, too.
    moved.arrive(moved.begin())
    assert pair.a.stats()["transfers"]["fences"] > fences
    wires.heal_all()
    healed = time.monotonic()
    before = wires.sent_bytes(moved.end)
    while wires.sent_bytes(moved.end) < before + 512 * KIB:
        moved.arrive(moved.begin())
        assert time.monotonic() < healed + WAIT_S, "the rail was never used again"
    moved.segment.close()
