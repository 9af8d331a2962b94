"""Tests of torch_tent.kv: blocks land where they belong, and notices come after them, once."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import torch_tent as tent
from tests.pairs import WAIT_S, Pair, two_engines
from torch_tent.ticket import Ticket


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with two_engines() as found:
        yield found


def layers(kind: str, blocks: int, seed: int = 0) -> list[torch.Tensor]:
    """Three layers of random numbers, [blocks, 4, 3] or [2, blocks, 4, 3] or apart in memory."""
    draw = torch.Generator().manual_seed(seed)
    shape = {"plain": (3, blocks, 4, 3), "halves": (3, 2, blocks, 4, 3), "apart": (blocks, 3, 4, 3)}
    x = torch.randint(-1000, 1000, shape[kind], generator=draw, dtype=torch.int16)
    return list(x.unbind(1)) if kind == "apart" else [layer.clone() for layer in x]


def caches(pair: Pair, kind: str, blocks: tuple[int, int], **more: Any) -> tuple[Any, Any, Any]:
    """A cache of a, a cache of b, and that of b as a sees it."""
    dim = 1 if kind == "halves" else 0
    ours = tent.KVCache(layers(kind, blocks[0], 1), dim, engine=pair.a)
    theirs = tent.KVCache(layers(kind, blocks[1], 2), dim, engine=pair.b, **more)
    return ours, theirs, pair.a.open(theirs.ticket())


def block(layer: torch.Tensor, number: int, kind: str) -> torch.Tensor:
    return layer[:, number] if kind == "halves" else layer[number]


@pytest.mark.parametrize("chosen", [None, [2, 0]])
@pytest.mark.parametrize("kind", ["plain", "halves", "apart"])
def test_blocks_land_where_they_belong(
    pair: Pair, kind: str, chosen: list[int] | None, seed: int
) -> None:
    random.seed(seed)
    ours, theirs, remote = caches(pair, kind, (40, 60))
    before = [layer.clone() for layer in theirs.layers]
    source = [random.randrange(40) for _ in range(25)]
    target = random.sample(range(60), 25)
    written = pair.a.write_blocks(ours, source, remote, target, layers=chosen)
    assert written.wait(WAIT_S) is None
    assert written.report()["bytes"] == 25 * 24 * len(chosen or range(3)) * (
        2 if kind == "halves" else 1
    )
    for number, layer in enumerate(theirs.layers):
        moved = chosen is None or number in chosen
        for at in range(60):
            wanted = block(before[number], at, kind)
            if moved and at in target:
                wanted = block(ours.layers[number], source[target.index(at)], kind)
            assert torch.equal(block(layer, at, kind), wanted), (number, at)


@pytest.mark.parametrize("kind", ["plain", "halves", "apart"])
def test_blocks_are_read_where_they_are(pair: Pair, kind: str) -> None:
    ours, theirs, remote = caches(pair, kind, (40, 60))
    source, target = np.arange(59, 39, -1), torch.arange(20) * 2
    pair.a.read_blocks(remote, source, ours, target).wait(WAIT_S)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        for here, there in zip(target.tolist(), source.tolist(), strict=True):
            assert torch.equal(block(mine, here, kind), block(other, there, kind))


def test_caches_of_other_strides_fit(pair: Pair) -> None:
    ours = tent.KVCache(layers("apart", 8), engine=pair.a)
    theirs = tent.KVCache([torch.zeros(8, 4, 3, dtype=torch.int16)] * 1, engine=pair.b)
    remote: Any = pair.a.open(theirs.ticket())
    pair.a.write_blocks(ours, range(8), remote, range(8), layers=[0]).wait(WAIT_S)
    assert torch.equal(theirs.layers[0], ours.layers[0])


def test_a_notice_comes_once_and_after_the_bytes(pair: Pair) -> None:
    ours, theirs, remote = caches(pair, "plain", (64, 64))
    seen: list[tuple[bytes, bool]] = []

    def listen() -> None:
        while len(seen) < 20:
            note = theirs.wait_notification(WAIT_S)
            assert note is not None
            assert note.peer == pair.a.card.name
            number = int(note.payload)
            equal = torch.equal(theirs.layers[0][number], ours.layers[0][63 - number])
            seen.append((note.payload, equal))

    thread = threading.Thread(target=listen)
    thread.start()
    for number in range(20):
        pair.a.write_blocks(ours, [63 - number], remote, [number], notify=b"%d" % number)
    thread.join(WAIT_S)
    assert sorted(seen) == sorted((b"%d" % number, True) for number in range(20))
    assert list(theirs.notifications()) == []
    assert theirs.wait_notification(0.01) is None
    pair.a.write_blocks(ours, [0], remote, [0]).wait(WAIT_S)  # Without a notice.
    pair.a.write_blocks(ours, [], remote, [], notify=b"no blocks").wait(WAIT_S)
    note = theirs.wait_notification(WAIT_S)
    assert note is not None
    assert note.payload == b"no blocks"


def test_notices_in_a_loop(pair: Pair) -> None:
    ours, theirs, remote = caches(pair, "plain", (4, 4))

    async def listen() -> list[bytes]:
        found = []
        async for note in theirs:
            found.append(note.payload)
            if len(found) == 3:
                theirs.close()
        return found

    for number in range(3):
        pair.a.write_blocks(ours, [0], remote, [0], notify=bytes([number])).wait(WAIT_S)
    assert asyncio.run(listen()) == [b"\0", b"\1", b"\2"]
    assert list(theirs.notifications()) == []
    with pytest.raises(tent.AccessError, match="closed"):
        theirs.wait_notification(1)


def test_a_cache_that_is_closed_ends_waits_for_notices(pair: Pair) -> None:
    _, theirs, _ = caches(pair, "plain", (4, 4))
    errors: list[BaseException | None] = []

    def listen(wait: Callable[[], object]) -> None:
        try:
            wait()
            errors.append(None)
        except BaseException as error:
            errors.append(error)

    async def each() -> None:
        async for _ in theirs:
            pass

    waits = [lambda: theirs.wait_notification(WAIT_S), lambda: asyncio.run(each())]
    threads = [threading.Thread(target=listen, args=(wait,)) for wait in waits]
    for thread in threads:
        thread.start()
    time.sleep(0.1)  # Both wait by now, or find it closed: the same must come of it.
    theirs.close()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(errors) == 2
    assert None in errors  # The loop just ends.
    assert any(isinstance(error, tent.AccessError) for error in errors)


def test_closing_is_the_only_news_of_a_close(pair: Pair) -> None:
    """Calls that meet a close find the cache open or closed, whatever they were about to do."""
    calls: list[Callable[[tent.KVCache], object]] = [
        lambda cache: cache.wait_notification(0),
        lambda cache: list(cache.notifications()),
        lambda cache: cache.ticket(),
        lambda cache: cache.revoke([1]),
    ]
    errors: list[BaseException] = []

    def call(cache: tent.KVCache, one: Callable[[tent.KVCache], object], calling: Any) -> None:
        try:
            while cache._closer.alive:
                one(cache)
                calling.set()
            one(cache)
        except tent.AccessError:
            pass
        except BaseException as error:
            errors.append(error)

    for turn in range(100):
        cache = tent.KVCache([torch.zeros(4, 64)], engine=pair.b)
        calling = threading.Event()
        caller = threading.Thread(target=call, args=(cache, calls[turn % 4], calling))
        caller.start()
        assert calling.wait(WAIT_S)
        cache.close()
        caller.join(WAIT_S)
        assert not caller.is_alive()
    assert not errors


def test_revoked_blocks_are_closed_to_old_tickets(pair: Pair) -> None:
    ours, theirs, remote = caches(pair, "halves", (8, 8))
    theirs.revoke(torch.tensor([3, 5]))
    kept = [layer.clone() for layer in theirs.layers]
    for blocks in ([3], [0, 5]):
        for transfer in (
            pair.a.write_blocks(ours, blocks, remote, blocks, notify=b"no"),
            pair.a.read_blocks(remote, blocks, ours, blocks),
        ):
            error = transfer.exception(WAIT_S)
            assert type(error) is tent.AccessError
            assert "revoked" in str(error)
    assert all(map(torch.equal, kept, theirs.layers))
    assert list(theirs.notifications()) == []
    pair.a.write_blocks(ours, [1], remote, [1]).wait(WAIT_S)
    anew: Any = pair.a.open(theirs.ticket())
    pair.a.write_blocks(ours, [3, 5], anew, [3, 5]).wait(WAIT_S)
    assert torch.equal(theirs.layers[2][:, 5], ours.layers[2][:, 5])


def test_a_closed_cache_is_closed_to_all(pair: Pair) -> None:
    ours, theirs, remote = caches(pair, "plain", (4, 4))
    with theirs:
        pass
    theirs.close()
    error = pair.a.write_blocks(ours, [0], remote, [0]).exception(WAIT_S)
    assert type(error) is tent.AccessError
    for forbidden in (theirs.ticket, lambda: theirs.revoke([0])):
        with pytest.raises(tent.AccessError, match="closed"):
            forbidden()
    _, gone, remote = caches(pair, "plain", (4, 4))
    del gone
    gc.collect()
    error = pair.a.write_blocks(ours, [0], remote, [0]).exception(WAIT_S)
    assert type(error) is tent.AccessError


def test_rights(pair: Pair) -> None:
    ours, _, readable = caches(pair, "plain", (4, 4), access="read")
    with pytest.raises(tent.AccessError, match="allows 'read', not to write"):
        pair.a.write_blocks(ours, [0], readable, [0])
    pair.a.read_blocks(readable, [0], ours, [0]).wait(WAIT_S)


BAD_CALLS: list[tuple[dict[str, Any], Any, str]] = [
    ({"src": [4]}, IndexError, r"src_blocks\[0\] is 4: this cache has the blocks 0 to 3"),
    ({"dst": [6]}, IndexError, r"dst_blocks\[0\] is 6: the cache of .* has the blocks 0 to 5"),
    ({"src": [0, 1], "dst": [5, 5]}, ValueError, "dst_blocks names block 5 twice, at 0 and 1"),
    ({"src": [0, 1]}, ValueError, "src_blocks has 2 blocks, dst_blocks has 1: they go in pairs"),
    ({"layers": [3]}, IndexError, "layer 3 is not in both caches: this cache: 3 layers"),
    ({"layers": [0, 0]}, ValueError, "names a layer twice"),
    ({"layers": ["a"]}, (TypeError, ValueError), "layers"),
    ({"notify": "text"}, TypeError, "notify is a str: it is bytes"),
    ({"notify": bytes(65537)}, ValueError, "65537 bytes: .* at most 65536"),
    ({"cache": None}, TypeError, "the cache is a NoneType"),
    ({"remote": None}, TypeError, "the remote side is a NoneType"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD_CALLS)
def test_what_does_not_fit_is_named_at_the_call(
    pair: Pair, changed: dict[str, Any], error: Any, message: str
) -> None:
    ours, theirs, remote = caches(pair, "plain", (4, 6))
    kept = [layer.clone() for layer in theirs.layers]
    given = {"cache": ours, "src": [0], "remote": remote, "dst": [0]} | changed
    more = {name: given.pop(name) for name in ("layers", "notify") if name in given}
    with pytest.raises(error, match=message):
        pair.a.write_blocks(*given.values(), **more)
    assert all(map(torch.equal, kept, theirs.layers))
    assert not pair.a.flights.running


def test_caches_that_differ_are_both_named(pair: Pair) -> None:
    ours = tent.KVCache(layers("plain", 4), engine=pair.a)
    other = [
        (layers("plain", 4)[:2], 0, "differ in layers: this cache: 3 layers.*: 2 layers"),
        ([x.float() for x in layers("plain", 4)], 0, r"int16\[4, 3\] in this.*float32\[4, 3\] in"),
        ([x.mT for x in layers("plain", 4)], 0, r"int16\[4, 3\] in this.*int16\[3, 4\] in"),
        (layers("halves", 4), 1, r"int16\[4, 3\] in this cache, 2 x int16\[4, 3\] in"),
    ]
    for theirs, dim, message in other:
        exported = tent.KVCache(theirs, dim, engine=pair.b)
        remote: Any = pair.a.open(exported.ticket())
        with pytest.raises(ValueError, match=message):
            pair.a.read_blocks(remote, [0], ours, [0])


@pytest.mark.parametrize(
    ("given", "dim", "error", "message"),
    [
        ([], 0, ValueError, "layers is empty"),
        (torch.zeros(3, 4), 0, TypeError, "one tensor: give a list"),
        ([torch.zeros(3, 4), torch.zeros(4, 4)], 0, ValueError, "layer 1 begins with"),
        ([torch.zeros(2, 3, 4), torch.zeros(3, 3, 4)], 1, ValueError, "layer 1 begins with"),
        ([torch.zeros(3)], 1, ValueError, r"layer 0 has shape \(3,\): it has no dimension 1"),
        ([torch.zeros(3)], -1, ValueError, "no dimension -1"),
        ([torch.zeros(0, 3)], 0, ValueError, "it has no blocks"),
        ([torch.zeros(3), "x"], 0, TypeError, "layer 1: the segment is a str"),
        ([torch.zeros(1, 3).expand(4, 3)], 0, ValueError, "layer 0: .*share memory"),
        ([torch.zeros(3, 4).T], 0, ValueError, "layer 0: its blocks lie in one another"),
    ],
)
def test_layers_that_are_no_cache_are_named(
    pair: Pair, given: Any, dim: int, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        tent.KVCache(given, dim, engine=pair.a)


def test_the_owner_checks_blocks_himself(pair: Pair) -> None:
    """Blocks that lie apart have other memory between them, which no forged ticket reaches."""
    pool = torch.zeros(4, 3, 8)
    theirs = tent.KVCache([pool[:, 1]], engine=pair.b)
    honest = Ticket.decode(theirs.ticket())
    whole = honest.tensors[0]
    for offset, step in ((32, 96), (0, 32), (0, 192)):
        forged = type(whole)(0, offset, (1, 8), (step, 4), "float32", 4)
        planes = (offset + step + 32,)
        ticket = Ticket(honest.card, honest.segment, honest.key, 0, "write", "cpu", planes,
                        (forged,), 0, 1)  # fmt: skip
        ours = tent.KVCache([torch.ones(1, 8)], engine=pair.a)
        remote: Any = pair.a.open(ticket.encode())
        error = pair.a.write_blocks(ours, [0], remote, [0]).exception(WAIT_S)
        assert type(error) is tent.AccessError, (offset, step)
    assert not pool.any()


def test_many_blocks_are_not_counted_in_python(pair: Pair) -> None:
    blocks, count = 100_000, 16
    ours = tent.KVCache([torch.ones(blocks, 2) for _ in range(count)], engine=pair.a)
    theirs = tent.KVCache([torch.zeros(blocks, 2) for _ in range(count)], engine=pair.b)
    remote: Any = pair.a.open(theirs.ticket())
    order = torch.randperm(blocks)
    began = time.thread_time()
    transfer = pair.a.write_blocks(ours, order, remote, order)
    seconds = time.thread_time() - began
    transfer.wait(WAIT_S)
    assert all(bool(layer.all()) for layer in theirs.layers)
    # The promise is 40 ns a block and layer; a loop in Python over them takes ten times as long.
    assert seconds / (blocks * count) < 100e-9


def test_how_caches_look(pair: Pair) -> None:
    ours, theirs, remote = caches(pair, "halves", (4, 6))
    assert (ours.blocks, remote.blocks, remote.layer_count) == (4, 6, 3)
    assert (remote.device, remote.access) == (torch.device("cpu"), "read-write")
    assert remote.peer == pair.b.card.name
    assert "3 layers of blocks 2 x int16[4, 3]" in repr(remote)
    theirs.close()
    assert "closed" in repr(theirs)
