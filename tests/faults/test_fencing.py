"""P1: after a transfer has ended, in whatever way, no byte of memory that it named is written; and
closing or revoking memory holds at once. P3: a notification comes once, after all its bytes.

Each test ends a transfer while its bytes are in sockets and relays, reuses the memory at once, lets
the rails carry everything that was under way, and looks for stray bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

import torch_tent as tent
from tests.faults.rig import CANARY, MIB, Rig, pattern

SIZE = 16 * MIB
BLOCKS, BLOCK = 64, 64 << 10


def settle(rig: Rig) -> None:
    """Everything that was under way when this was called has been carried when it returns.

    Links keep order, and what is written now over every rail arrives after what was sent before.
    """
    rig.carry()
    rig.carry()


def started(rig: Rig, landing: torch.Tensor) -> None:
    while not landing[:: 16 << 10].any():
        pass


@pytest.mark.parametrize("end", ["cancel", "timeout", "close", "far closes"])
def test_no_stray_byte_lands_after_a_write_has_ended(end: str, seed: int) -> None:
    chance = random.Random(seed)
    with Rig(rate=20e6) as rig:
        for _ in range(4):
            landing = torch.zeros(SIZE, dtype=torch.uint8)
            segment = rig.far.register(landing, access="read-write")
            remote = rig.near.open(segment.ticket())
            rig.warm()
            timeout = chance.uniform(0.005, 0.08) if end == "timeout" else None
            transfer = rig.near.write(pattern(SIZE, seed), remote, timeout=timeout)
            if end != "timeout":
                started(rig, landing)
            if end == "far closes":
                segment.close()
            elif end == "cancel":
                transfer.cancel()
            elif end == "close":
                transfer.cancel()
                segment.close()
            expected = {
                "timeout": tent.TransferTimeout,
                "far closes": tent.AccessError,
            }.get(end, tent.TransferCancelled)
            if end != "far closes":
                with pytest.raises(expected):
                    transfer.wait(10)
            landing.fill_(CANARY)  # the memory is its owner's again
            if end == "far closes":
                with pytest.raises(expected):
                    transfer.wait(10)
            settle(rig)
            assert (landing == CANARY).all()
            segment.close()


@pytest.mark.parametrize("fault", ["cut", "drop", "slow"])
def test_no_stray_byte_lands_after_a_cancel_during_a_fault(fault: str, seed: int) -> None:
    with Rig(rate=20e6) as rig:
        landing = torch.zeros(SIZE, dtype=torch.uint8)
        with rig.far.register(landing, access="read-write") as segment:
            remote = rig.near.open(segment.ticket())
            rig.warm()
            transfer = rig.near.write(pattern(SIZE, seed), remote)
            started(rig, landing)
            if fault == "slow":
                rig.relays.slow(1, 20)
            else:
                getattr(rig.relays, fault)(1)
            transfer.cancel()
            with pytest.raises(tent.TransferCancelled):
                transfer.wait(10)
            landing.fill_(CANARY)
            rig.relays.heal(1)
            settle(rig)
            assert (landing == CANARY).all()


def test_a_read_that_was_cancelled_writes_nothing_more(seed: int) -> None:
    with Rig(rate=20e6) as rig:
        source, landing = pattern(SIZE, seed), torch.zeros(SIZE, dtype=torch.uint8)
        with rig.far.register(source, access="read") as segment:
            remote = rig.near.open(segment.ticket())
            transfer = rig.near.read(remote, landing)
            started(rig, landing)
            transfer.cancel()
            with pytest.raises(tent.TransferCancelled):
                transfer.wait(10)
            landing.fill_(CANARY)
            settle(rig)
            assert (landing == CANARY).all()


def test_a_write_that_ended_does_not_read_its_source_any_more(seed: int) -> None:
    """What arrives of a cancelled write is of the source as it was, or nothing."""
    with Rig(rate=20e6) as rig:
        landing = torch.zeros(SIZE, dtype=torch.uint8)
        with rig.far.register(landing, access="read-write") as segment:
            remote = rig.near.open(segment.ticket())
            rig.warm()
            source = pattern(SIZE, seed)
            transfer = rig.near.write(source, remote)
            started(rig, landing)
            transfer.cancel()
            with pytest.raises(tent.TransferCancelled):
                transfer.wait(10)
            source.fill_(CANARY)
            settle(rig)
            assert not (landing == CANARY).any()


def cache(fill: int) -> list[torch.Tensor]:
    return [torch.full((BLOCKS, BLOCK), fill, dtype=torch.uint8) for _ in range(2)]


def test_revoked_blocks_are_the_owners_at_once(seed: int) -> None:
    chance = random.Random(seed)
    with Rig(rate=20e6) as rig:
        theirs, mine = cache(0), cache(1)
        far, near = tent.KVCache(theirs, engine=rig.far), tent.KVCache(mine, engine=rig.near)
        remote = rig.near.open(far.ticket())
        rig.warm()
        blocks = chance.sample(range(BLOCKS), BLOCKS // 2)
        transfer = rig.near.write_blocks(near, blocks, remote, blocks, notify=b"stale")
        while not theirs[0][blocks[0]].any():
            pass
        far.revoke(blocks)
        for layer in theirs:
            layer[blocks] = CANARY
        with pytest.raises(tent.AccessError, match="revoked"):
            transfer.wait(10)
        with pytest.raises(tent.AccessError, match="revoked"):
            rig.near.write_blocks(near, blocks[:1], remote, blocks[:1]).wait(10)
        settle(rig)
        assert all((layer[blocks] == CANARY).all() for layer in theirs)
        assert list(far.notifications()) == []
        fresh = rig.near.open(far.ticket())  # a new ticket opens them again
        rig.near.write_blocks(near, blocks, fresh, blocks, notify=b"fresh").wait(30)
        assert all((layer[blocks] == 1).all() for layer in theirs)
        assert [note.payload for note in far.notifications()] == [b"fresh"]


FAULTS: list[Callable[[Rig], object]] = [
    lambda rig: rig.relays.cut(1),
    lambda rig: rig.relays.heal(1),
    lambda rig: rig.relays.drop(2),
    lambda rig: rig.relays.heal(2),
    lambda rig: rig.relays.slow(1, 50),
    lambda rig: rig.relays.heal(1),
]


def test_each_notification_comes_once_after_all_its_bytes(seed: int) -> None:
    with Rig(rate=60e6) as rig:
        theirs, mine = cache(0), cache(0)
        far, near = tent.KVCache(theirs, engine=rig.far), tent.KVCache(mine, engine=rig.near)
        remote = rig.near.open(far.ticket())
        rig.warm()
        everything = list(range(BLOCKS))
        for value, fault in enumerate(FAULTS, start=1):
            for layer in mine:
                layer.fill_(value)
            transfer = rig.near.write_blocks(
                near, everything, remote, everything, notify=bytes([value])
            )
            fault(rig)
            note = far.wait_notification(30)
            assert all((layer == value).all() for layer in theirs)
            assert note is not None
            assert note.payload == bytes([value])
            transfer.wait(30)
        assert list(far.notifications()) == []
