"""What one transfer costs on the wire: messages and RDMA reads, counted on the fake devices."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from tests.fake_rdma import Fabric, posted
from tests.pairs import noise, until
from tests.test_rdma_rails import Two

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = pytest.mark.usefixtures("rdma_host")

KIB = 1 << 10
TURNS = 40


class OneRail(Two):
    def __init__(self) -> None:
        self.near = self.engine(("fake0",), (), {})
        self.far = self.engine(("fake1",), (), {})


def rails_up(two: Two) -> int:
    return sum(rail["up"] for rail in two.near.native.stats()["rails"])


def cost(fabric: Fabric, transfer: Callable[[], None]) -> tuple[float, float]:
    """Messages and reads of one transfer, of TURNS that are waited for one after the other."""
    for _ in range(3):
        transfer()
    messages, reads = posted(fabric)
    for _ in range(TURNS):
        transfer()
    after = posted(fabric)
    return (after[0] - messages) / TURNS, (after[1] - reads) / TURNS


# Messages and reads. One that goes by itself would be one more: an opening or its slice, an
# acknowledgement that nobody waits for.
WRITE = {8: (2, 0), 64 * KIB: (2, 1)}  # what is written, or where it lies; Done
READ = {8: (2, 0), 64 * KIB: (3, 1)}  # what is asked for; the bytes, or where they lie; Done


@pytest.mark.parametrize("nbytes", [8, 64 * KIB])
def test_what_is_said_together_goes_in_one_message(fabric: Fabric, nbytes: int) -> None:
    with OneRail() as two:
        memory, segment, remote = two.landing(nbytes)
        x, back = noise(nbytes), torch.zeros(nbytes, dtype=torch.uint8)
        written = cost(fabric, lambda: two.near.write(x, remote).wait(20))
        fetched = cost(fabric, lambda: two.near.read(remote, back).wait(20))
        assert torch.equal(memory, x)
        assert torch.equal(back, x)
        # Some, where the machine is busy: an acknowledgement has waited for 4 ms, credits go back.
        assert written == pytest.approx(WRITE[nbytes], abs=0.4)
        assert fetched == pytest.approx(READ[nbytes], abs=0.4)
        segment.close()


def test_acknowledgements_that_wait_are_no_silence(fabric: Fabric) -> None:
    """Nothing follows the last message of a transfer: what acknowledges it comes by itself, and
    soon enough that no rail is suspected."""
    with Two() as two:
        memory, segment, remote = two.landing(64 * KIB)
        x = noise(64 * KIB)
        two.near.write(x, remote).wait(20)
        until(lambda: rails_up(two) == 2)
        for _ in range(10):
            messages, _ = posted(fabric)
            two.near.write(x, remote).wait(20)
            time.sleep(0.04)  # longer than a frame needs to be overdue
            assert posted(fabric)[0] >= messages + WRITE[64 * KIB][0] + 1
        assert torch.equal(memory, x)
        for engine in (two.near, two.far):
            assert engine.native.stats()["transfers"]["suspects"] == 0
        segment.close()
