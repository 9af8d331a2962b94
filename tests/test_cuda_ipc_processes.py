"""Tests of transfers from GPU to GPU between two processes, each with its fake driver: memory is
opened once and closed again, never used for another one that came to its address; GPUs are found by
what they are, not by their number; a peer that dies takes nothing with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_tent as tent
from tests.fake_cuda import ACROSS, Fake, until, use
from tests.pairs import noise
from tests.processes import Processes, run_processes
from torch_tent.engines import Engine
from torch_tent.settings import Settings

MIB = 1 << 20
WAIT_S = 20.0
TRANSPORTS = ("shm", "cuda_ipc")


class Member:
    """One of the two processes: its engine, its fake GPUs, its rank in the group of both."""

    def __init__(self, rank: int, folder: str) -> None:
        self.rank, self.folder = rank, Path(folder)
        self.fake: Fake = use()
        self.engine = Engine(Settings(transports=TRANSPORTS))
        self.store = dist.FileStore(str(self.folder / "store"), 2)
        self.group = self.engine.join(self.store, rank, 2)

    def exchange(self, tensor: Any, tag: int = 0, **options: Any) -> Any:
        """Rank 0 sends the tensor, rank 1 receives into it; returns the transfer."""
        call: Callable[..., Any] = self.engine.send if self.rank == 0 else self.engine.recv
        transfer = call(tensor, 1 - self.rank, tag, group=self.group, **options)
        transfer.wait(WAIT_S)
        return transfer

    def meet(self, name: str) -> None:
        """Both have come here."""
        self.store.set(f"{name}/{self.rank}", "here")
        self.store.wait([f"{name}/{1 - self.rank}"])

    def opened(self) -> int:
        return int(self.fake.c.opened())

    def opens(self) -> int:
        """How often memory of the other process was opened."""
        return int(self.fake.c.calls("cuIpcOpenMemHandle"))


def both_ways(rank: int, _: int, folder: str) -> None:
    me = Member(rank, folder)
    me.fake.model(jitter_s=0.001)
    size = 9 * MIB + 5
    whole = me.fake.tensor(noise(2 * size) if rank == 0 else torch.zeros(2 * size).byte(), rank)
    for turn in range(5):  # Pieces of one allocation, as torch's allocator hands them out.
        part = whole[turn * 100 : turn * 100 + size]
        before = me.fake.copied(rank, ACROSS)
        moved = me.exchange(part, turn, require="nvlink")
        assert set(moved.report()["rails"]) == {"cuda_ipc"}
        assert me.fake.copied(rank, ACROSS) - before == (size if rank == 1 else 0)  # All of it.
        if rank == 1:
            assert torch.equal(me.fake.peek(part), noise(2 * size)[turn * 100 : turn * 100 + size])
    assert (me.opens(), me.opened()) == ((1, 1) if rank == 1 else (0, 0))
    me.meet("sent")
    if rank == 1:  # And back, so that both have opened something.
        me.fake.poke(whole, noise(2 * size, 2))
    segment = me.engine.register(whole, "read")
    me.store.set(f"ticket/{rank}", segment.ticket())
    if rank == 0:
        remote: Any = me.engine.open(me.store.get("ticket/1"))
        me.engine.read(remote, whole, require="nvlink").wait(WAIT_S)
        assert torch.equal(me.fake.peek(whole), noise(2 * size, 2))
        assert me.opened() == 1
    me.meet("read")
    me.engine.close()
    assert me.opened() == 0  # It was closed with the peer.


def test_both_ways(tmp_path: Path) -> None:
    run_processes(both_ways, 2, str(tmp_path), timeout=60)


def reused_addresses(rank: int, _: int, folder: str) -> None:
    me = Member(rank, folder)
    size = 3 * MIB
    tensor = me.fake.tensor(torch.zeros(size).byte())
    for turn in range(4):
        if rank == 0:
            me.fake.replace(tensor, noise(size, turn))
        me.exchange(tensor, turn, require="nvlink")
        if rank == 1:
            assert torch.equal(me.fake.peek(tensor), noise(size, turn))
            assert (me.opens(), me.opened()) == (turn + 1, 1)
    me.meet("sent")
    if rank == 0:
        me.fake.free(tensor)
        me.store.wait(["closed"])
    else:  # What was freed is not held open by a peer that has used it.
        until(lambda: me.opened() == 0)
        me.store.set("closed", "")
    me.meet("end")
    me.engine.close()


def test_memory_that_was_freed_is_closed_and_never_used_again(tmp_path: Path) -> None:
    run_processes(reused_addresses, 2, str(tmp_path), timeout=60)


def other_numbers(rank: int, _: int, folder: str) -> None:
    fake = use()
    fake.c.peers(False)  # A GPU can read its own memory alone.
    if rank == 1:
        fake.c.order(1)
    me = Member(rank, folder)
    values = noise(MIB) if rank == 0 else torch.zeros(MIB).byte()
    # The second process counts them the other way round: its cuda:1 is the first one's cuda:0.
    same, other = fake.tensor(values, rank), fake.tensor(values, 0)
    me.exchange(same, 1, require="nvlink")
    moved = me.exchange(other, 2)
    assert set(moved.report()["rails"]) == {"shm"}
    if rank == 1:
        assert torch.equal(fake.peek(same), noise(MIB))
        assert torch.equal(fake.peek(other), noise(MIB))
    me.meet("end")
    me.engine.close()


def test_gpus_are_the_same_under_other_numbers(tmp_path: Path) -> None:
    run_processes(other_numbers, 2, str(tmp_path), timeout=60)


def cannot_open(rank: int, _: int, folder: str) -> None:
    me = Member(rank, folder)
    values = noise(5 * MIB) if rank == 0 else torch.zeros(5 * MIB).byte()
    tensor = me.fake.tensor(values)
    if rank == 1:
        me.fake.fail("cuIpcOpenMemHandle", result=201)
    for turn in range(3):  # Whichever of them comes to it finds that it fails, and heals.
        me.exchange(tensor, turn)
        if rank == 1:
            assert torch.equal(me.fake.peek(tensor), noise(5 * MIB))
            me.fake.poke(tensor, torch.zeros(5 * MIB).byte())
        me.meet(f"turn {turn}")
        time.sleep(0.1)  # Time for a link between the GPUs to be made.
    moved = me.exchange(tensor, 10)
    assert set(moved.report()["rails"]) == {"shm"}
    me.meet("end")
    me.engine.close()


def test_what_cannot_be_opened_goes_through_the_host(tmp_path: Path) -> None:
    run_processes(cannot_open, 2, str(tmp_path), timeout=60)


def until_it_is_killed(rank: int, _: int, folder: str, doomed: int) -> None:
    me = Member(rank, folder)
    size = 16 * MIB
    tensor = me.fake.tensor(noise(size))
    me.exchange(tensor, require="nvlink")
    me.fake.model(across=20e6)
    me.meet("slow")
    call: Any = me.engine.send if rank == 0 else me.engine.recv
    transfer = call(tensor, 1 - rank, 1, group=me.group, require="nvlink")
    time.sleep(0.1)
    if rank == doomed:
        os.kill(os.getpid(), signal.SIGKILL)
    error = transfer.exception(WAIT_S)
    assert isinstance(error, tent.PeerLostError), error
    canary = torch.full((size,), 200).byte()
    me.fake.poke(tensor, canary)
    me.fake.idle()
    assert torch.equal(me.fake.peek(tensor), canary)
    until(lambda: me.opened() == 0)
    me.engine.close()


@pytest.mark.parametrize("doomed", [0, 1], ids=["sender", "receiver"])
def test_a_peer_that_is_killed(tmp_path: Path, doomed: int) -> None:
    with Processes(until_it_is_killed, 2, str(tmp_path), doomed) as children:
        children.results(60, lost=[doomed])


def stopped_while_it_copies(rank: int, _: int, folder: str) -> None:
    me = Member(rank, folder)
    size = 16 * MIB
    tensor = me.fake.tensor(noise(size))
    me.exchange(tensor, require="nvlink")
    me.meet("warm")
    if rank == 1:
        me.fake.model(across=8e6)
        segment = me.engine.register(tensor, "write")
        me.store.set("ticket", segment.ticket())
        time.sleep(30)
    remote: Any = me.engine.open(me.store.get("ticket"))
    transfer = me.engine.write(tensor, remote, require="nvlink")
    time.sleep(0.1)
    me.store.set("stop", "")
    me.store.wait(["stopped"])
    began = time.monotonic()
    transfer.cancel()
    assert transfer.exception(WAIT_S) is not None
    # The stopped one may be in the middle of a copy of ours: only its loss, or its word, ends it.
    assert time.monotonic() - began > 0.2
    me.store.set("ended", "")


def test_a_receiver_that_is_stopped_holds_the_end_back(tmp_path: Path) -> None:
    with Processes(stopped_while_it_copies, 2, str(tmp_path)) as children:
        store = dist.FileStore(str(tmp_path / "store"), 2)
        store.wait(["stop"])
        children.send_signal(1, signal.SIGSTOP)
        store.set("stopped", "")
        time.sleep(1.0)
        assert not store.check(["ended"])
        children.send_signal(1, signal.SIGCONT)
        children.results(60, lost=[1])
