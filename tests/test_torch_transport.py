"""Stage: tests. "tent" as a transport of torch 2.15: what its base class promises, between two
engines of one process and between processes; and descriptors that are none. Skipped where torch
does not have the interface yet."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.processes import run_processes

transports: Any = pytest.importorskip("torch.distributed._transport", reason="torch 2.15 has it")

SIZE = 200_000


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """Two connected ends."""
    with transports.new_transport("tent") as here, transports.new_transport("tent") as there:
        here.connect(there.bind())
        there.connect(here.bind())
        yield here, there


def carried(memory: Any) -> Any:
    """Its descriptor as the peer gets it: over a wire."""
    found = memory.to_remote_buffer()
    return type(found).deserialize(found.serialize())


def test_it_is_found_by_its_name() -> None:
    assert "tent" in transports.available_transports()


def test_writes_and_reads_arrive(pair: tuple[Any, Any]) -> None:
    here, there = pair
    x, y = torch.arange(float(SIZE)), torch.zeros(SIZE)
    mine, theirs = here.register_memory(x), there.register_memory(y)
    assert here.write(mine.to_view(), carried(theirs)) == 0
    assert torch.equal(x, y)
    y.neg_()
    work = here.read(mine.to_mutable_view(4, 400), carried(theirs), async_op=True)
    assert work.wait()
    assert torch.equal(x[1:101], y[:100])
    assert torch.equal(x[101:], -y[101:])
    assert (work.is_completed(), work.is_success(), work.exception()) == (True, True, None)
    assert work.result() == []
    assert work.get_future().wait() == []


@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e5m2, torch.complex64])
def test_bytes_of_any_dtype_and_shape(pair: tuple[Any, Any], dtype: torch.dtype) -> None:
    here, there = pair
    x = torch.randint(0, 2, (3, 5)).to(dtype)
    y = torch.zeros(15, dtype=dtype)
    mine, theirs = here.register_memory(x), there.register_memory(y)
    here.write(mine.to_view(), carried(theirs))
    assert torch.equal(x.view(torch.uint8).reshape(-1), y.view(torch.uint8))


def test_a_number_and_nothing(pair: tuple[Any, Any]) -> None:
    here, there = pair
    x, y = torch.tensor(7), torch.tensor(0)
    mine, theirs = here.register_memory(x), there.register_memory(y)
    assert here.write(mine.to_view(length=0), carried(theirs)) == 0
    assert here.write(mine.to_view(length=0), carried(theirs), async_op=True).wait()
    assert int(y) == 0
    here.write(mine.to_view(), carried(theirs))
    assert int(y) == 7


def test_in_an_event_loop(pair: tuple[Any, Any]) -> None:
    here, there = pair
    x, y = torch.rand(SIZE), torch.zeros(SIZE)
    mine, theirs = here.register_memory(x), there.register_memory(y)
    remote = carried(theirs)

    async def move() -> None:
        await asyncio.gather(
            *[
                here.write_async(mine.to_view(at, SIZE), remote, timeout=30.0)
                for at in range(0, 80, 8)
            ]
        )
        await here.write_async(mine.to_view(), remote)
        x.zero_()
        await here.read_async(mine.to_mutable_view(), remote)
        await here.close_async(timeout=30.0)

    asyncio.run(move())
    assert torch.equal(x, y)
    assert x.any()
    assert not here.connected()


def test_a_wait_that_is_too_short_stops_nothing(pair: tuple[Any, Any]) -> None:
    here, there = pair
    x, y = torch.rand(8_000_000), torch.zeros(8_000_000)
    mine, theirs = here.register_memory(x), there.register_memory(y)
    work = here.write(mine.to_view(), carried(theirs), async_op=True)
    with pytest.raises(TimeoutError):  # Rails are made first: that alone takes longer.
        work.wait(timedelta(microseconds=1))
    with pytest.raises(RuntimeError, match="go on"):
        here.unregister_memory(mine)
    assert work.wait()
    assert torch.equal(x, y)
    here.unregister_memory(mine)


def test_unregistered_memory_is_out_of_reach(pair: tuple[Any, Any]) -> None:
    here, there = pair
    x, y = torch.ones(100), torch.zeros(100)
    mine, theirs = here.register_memory(x), there.register_memory(y)
    alias, remote = there.register_memory(y), carried(theirs)
    view = mine.to_view()
    there.unregister_memory(theirs)
    there.unregister_memory(theirs)
    with pytest.raises(RuntimeError, match="unregistered"):
        alias.to_remote_buffer()
    work = here.write(view, remote, async_op=True)
    with pytest.raises(RuntimeError, match="segment"):
        work.wait()
    assert isinstance(work.exception(), RuntimeError)
    with pytest.raises(RuntimeError):
        work.get_future().wait()
    assert not y.any()
    again = there.register_memory(y)
    here.write(view, carried(again))
    assert y.all()
    here.unregister_memory(mine)
    with pytest.raises(RuntimeError, match="unregistered"):
        here.write(view, carried(again))


def test_a_closed_end_is_out_of_reach() -> None:
    here = transports.new_transport("tent", "cpu", timeout=20.0)
    there = transports.new_transport("tent", "cpu")
    here.connect(there.bind())
    assert here.connected()
    x, y = torch.ones(100), torch.zeros(100)
    mine, theirs = here.register_memory(x), there.register_memory(y)
    remote = carried(theirs)
    there.close()
    there.close()
    with pytest.raises(RuntimeError, match="closed"):
        there.bind()
    with pytest.raises(RuntimeError):
        here.write(mine.to_view(), remote)
    assert not y.any()
    here.close()
    assert not here.connected()


def test_what_is_wrong_is_said(pair: tuple[Any, Any]) -> None:
    here, there = pair
    x, y = torch.ones(100), torch.zeros(50)
    mine, theirs = here.register_memory(x), there.register_memory(y)
    remote = carried(theirs)
    with pytest.raises(ValueError, match="do not fit"):
        here.write(mine.to_view(), remote)
    with pytest.raises(ValueError, match="outside"):
        mine.to_view(401)
    with pytest.raises(ValueError, match="more than"):
        mine.to_view(1, 400)
    with pytest.raises(TypeError, match="TentMutableView"):
        here.read(mine.to_view(0, 8), remote)
    with pytest.raises(TypeError, match="of this transport"):
        here.write(theirs.to_view(), remote)
    with pytest.raises(TypeError, match="TentRemoteBuffer"):
        here.write(mine.to_view(0, 8), b"")
    with pytest.raises(ValueError, match="not that of the peer"):
        here.write(mine.to_view(0, 8), carried(mine))
    with pytest.raises(ValueError, match="contiguous"):
        here.register_memory(torch.ones(4, 4).t())
    with pytest.raises(ValueError, match="empty"):
        here.register_memory(torch.ones(0))
    with pytest.raises(TypeError, match="list"):
        here.register_memory([1])
    with pytest.raises(ValueError, match="timeout"):
        here.write(mine.to_view(0, 8), remote, timeout=math.nan)
    with pytest.raises(RuntimeError, match="make one for each peer"):
        here.connect(there.bind())
    with pytest.raises(RuntimeError, match="failed to create"):
        transports.new_transport("tent", timeout=-1)


@pytest.mark.parametrize("data", [b"", b"x" * 40, b"{}"])
def test_a_descriptor_that_is_none(pair: tuple[Any, Any], data: bytes) -> None:
    kind = type(pair[1].register_memory(torch.ones(3)).to_remote_buffer())
    with pytest.raises(ValueError):  # noqa: PT011
        kind.deserialize(data)
    with pytest.raises(TypeError):
        kind.deserialize("text")
    fresh = transports.new_transport("tent")
    with pytest.raises(ValueError):  # noqa: PT011
        fresh.connect(data)
    memory = fresh.register_memory(torch.ones(3))
    with pytest.raises(RuntimeError, match="not connected"):
        fresh.write(memory.to_view(), memory.to_remote_buffer())
    fresh.close()


def swap(rank: int, size: int, port: int) -> list[float]:
    """Each rank pushes to the other, and pulls back."""
    store = dist.TCPStore("127.0.0.1", port, None, False)
    with transports.new_transport_rank("tent", store=store, peer_rank=1 - rank, rank=rank) as end:
        x, y = torch.full((SIZE,), rank + 1.0), torch.zeros(SIZE)
        source, target = end.register_memory(x), end.register_memory(y)
        store.set(f"buffer {rank}", target.to_remote_buffer().serialize())
        kind = type(target.to_remote_buffer())
        remote = kind.deserialize(store.get(f"buffer {1 - rank}"))
        end.write(source.to_view(), remote)
        store.set(f"written {rank}", "")
        store.wait([f"written {1 - rank}"])
        end.read(source.to_mutable_view(), remote)
        store.set(f"read {rank}", "")
        store.wait([f"read {1 - rank}"])
    return [y.unique().item(), x.unique().item()]


def test_between_processes() -> None:
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    found = run_processes(swap, 2, store.port)
    assert found == [[2.0, 1.0], [1.0, 2.0]]
