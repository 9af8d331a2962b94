"""P2 and P4 for bytes of GPUs, on a fake driver: a rail that fails in the middle costs its slices,
which are sent again from host memory, and not copied out of the GPU anew."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from tests.fake_cuda import INTO, OUT_OF, until, use
from tests.faults.rig import MIB, Rig, pattern

SIZE = 24 * MIB
FAULTS: dict[str, Callable[[Rig], object]] = {
    "cut": lambda rig: rig.relays.cut(1),
    "drop": lambda rig: rig.relays.drop(1),
}


@pytest.mark.parametrize("verb", ["write", "read"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_rail_that_fails_in_the_middle(fault: str, verb: str) -> None:
    fake = use()
    fake.model(jitter_s=0.001)
    with Rig() as rig:
        x, y = fake.tensor(pattern(SIZE, 1)), fake.tensor(torch.zeros(SIZE).byte(), 1)
        rig.warm()
        there = y if verb == "write" else x
        with rig.far.register(there, access="read-write") as segment:
            remote = rig.near.open(segment.ticket())
            copied, placed = fake.copied(0, OUT_OF), fake.copied(1, INTO)
            began = time.monotonic()
            transfer = rig.near.write(x, remote) if verb == "write" else rig.near.read(remote, y)
            until(lambda: fake.copied(1, INTO) > placed + 4 * MIB)
            FAULTS[fault](rig)
            assert not transfer.done()
            transfer.wait(30)
        assert time.monotonic() - began < 10
        assert torch.equal(fake.peek(y), pattern(SIZE, 1))
        if verb == "write":
            assert transfer.report()["fences"] > 0
        assert fake.copied(0, OUT_OF) == copied + SIZE
    fake.idle()
