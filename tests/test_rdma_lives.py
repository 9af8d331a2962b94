"""A peer that has ended and lives again on the same ports and address: over RDMA rails, too, it is
another one, and nothing that its former life gave out is good for anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.fake_rdma import Fabric
from tests.pairs import noise
from tests.parties import free_port
from tests.transport_links import LINK, MIB, Links, one_flow, post_slice

pytest_plugins = ["tests.rdma_fixtures"]
pytestmark = pytest.mark.timeout(300)  # the first test compiles the module
FILL = 0xA5


def engine(*devices: str, port: int = 0) -> tent.Engine:
    options: dict[str, Any] = {"listen_port": port} if port else {}
    return tent.Engine(tent.Settings(rdma_devices=devices, transports=("rdma", "tcp"), **options))


@pytest.mark.usefixtures("rdma_host")
def test_a_peer_that_lives_again_on_the_same_ports_is_another_one(fabric: Fabric) -> None:
    """Even its memory is at the same address, and registered with the same devices."""
    port = free_port("127.0.0.1")
    memory, x = torch.zeros(16 * MIB).byte(), noise(16 * MIB)
    near, far = engine("fake0", "fake2"), engine("fake1", "fake3", port=port)
    old = near.open(far.register(memory, access="read-write").ticket())
    near.write(x, old, require="rdma").wait(20)
    for device in range(4):
        fabric.rate(device, 50e6, 20e-6)
    under_way = near.write(x, old)
    far.close()
    with pytest.raises(tent.PeerLostError):
        under_way.wait(20)
    again = engine("fake1", "fake3", port=port)
    try:
        memory.fill_(FILL)
        segment = again.register(memory, access="read-write")
        new = near.open(segment.ticket())
        near.write(x[:8], new[:8], require="rdma").wait(20)  # The rails are up again.
        for rail in ("rdma", None):
            with pytest.raises(tent.PeerLostError):
                near.write(x, old, require=rail).wait(20)
            with pytest.raises(tent.PeerLostError):
                near.read(old, torch.zeros_like(x), require=rail).wait(20)
        assert bool((memory[8:] == FILL).all())
        near.write(x, new, require="rdma").wait(20)
        assert torch.equal(memory, x)
        segment.close()
    finally:
        near.close()
        again.close()


def test_the_queue_pair_of_a_former_life_is_not_joined_with(links: Links, fabric: Fabric) -> None:
    """The number is known, and the device is there: nobody answers, and the link never counts."""
    fabric.retry(0.02)
    old = links.a.rdma_open(LINK + 1, "fake0")
    links.a.close(LINK + 1)
    new = links.a.rdma_open(LINK + 1, "fake0")
    theirs = links.b.rdma_open(LINK + 1, "fake1")
    assert links.a.rdma_join(LINK + 1, theirs, False) == ""
    assert links.b.rdma_join(LINK + 1, old, True) == ""
    links.settle()
    assert old != new
    assert links.a.rdma_greeted(LINK + 1) is False
    assert "retry counter" in str(links.b.rdma_greeted(LINK + 1))


def test_a_stale_key_closes_its_link_and_nothing_lands(links: Links, fabric: Fabric) -> None:
    """Memory is taken back, as at a process's end, between the frame that names it and the read."""
    links.connect(LINK + 1)
    source = links.regions + 1
    _, landing = one_flow(links, MIB)
    landing[:] = FILL
    post_slice(links.a, 1, 0, MIB)
    links.a.drop(source)
    heard = links.heard(links.b)
    assert [event.what for event in heard] == ["slice", "down"]
    assert "a key that is no longer valid" in heard[-1].text
    assert (landing == FILL).all()
    assert [event.link for event in links.a.take_events()] == [LINK]  # The other one goes on.
