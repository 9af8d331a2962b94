"""Tests of torch_tent.transfer: a future that completes once, by itself, and lets its memory go."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import torch_tent as tent
from tests.pairs import WAIT_S, Pair, two_engines, until


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with two_engines() as found:
        yield found


def ready(pair: Pair) -> tuple[torch.Tensor, tent.Transfer, tent.Transfer]:
    """A transfer of 8 bytes that is about to end."""
    y = torch.zeros(2)
    received = pair.b.recv(y, 0, group=pair.group_b)
    return y, pair.a.send(torch.ones(2), 1, group=pair.group_a), received


def test_wait_returns_the_tensor_that_was_filled(pair: Pair) -> None:
    y, sent, received = ready(pair)
    assert received.wait(WAIT_S) is y
    assert sent.wait() is None
    assert y.tolist() == [1, 1]
    assert isinstance(sent, torch.futures.Future)
    assert sent.done()
    assert received.value() is received.wait() is y
    assert sent.exception() is None


def test_a_transfer_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="made by send"):
        tent.Transfer()


def test_it_completes_without_being_asked(pair: Pair) -> None:
    y, sent, received = ready(pair)
    found = torch.futures.collect_all([sent, received])
    until(found.done)
    assert [future.value() for future in found.value()] == [None, y]


def test_it_completes_though_nobody_refers_to_it(pair: Pair) -> None:
    kept, gone = torch.zeros(4), torch.full((4,), 5.0)
    last = weakref.ref(gone)
    pair.b.recv(kept, 0, 3, group=pair.group_b)
    pair.a.send(gone, 1, 3, group=pair.group_a)
    del gone
    gc.collect()
    until(lambda: kept.tolist() == [5] * 4)
    until(lambda: last() is None)
    until(lambda: not pair.a.flights.running and not pair.b.flights.running)


def test_what_failed_can_be_forgotten(pair: Pair) -> None:
    """An error refers to its transfer by its traceback: that must not keep both for ever."""
    y = torch.zeros(2)
    waiting = pair.b.recv(y, 0, 11, group=pair.group_b)
    waiting.cancel()
    with pytest.raises(tent.TransferCancelled):
        waiting.wait()
    gone = [weakref.ref(y), weakref.ref(waiting)]
    del y, waiting
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_callbacks_run_once_and_get_the_transfer(pair: Pair) -> None:
    y, sent, received = ready(pair)
    told: list[Any] = []
    received.add_done_callback(told.append)
    chained = received.then(lambda t: t.value() + 1)
    sent.add_done_callback(told.append)
    until(lambda: len(told) == 2)
    assert chained.wait().tolist() == [2, 2]
    assert set(map(id, told)) == {id(sent), id(received)}
    received.add_done_callback(told.append)  # It has ended: at once.
    assert len(told) == 3
    assert received.then(lambda t: t.wait() is y).wait()


def test_a_callback_that_raises_harms_nobody(pair: Pair) -> None:
    waiting = pair.never_sent()
    waiting.add_done_callback(lambda t: 1 / 0)
    broken = waiting.then(lambda t: 1 / 0)
    waiting.cancel()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        broken.wait()
    y, _, received = ready(pair)
    assert received.wait(WAIT_S) is y


def test_awaiting_takes_no_thread(pair: Pair) -> None:
    async def several() -> list[Any]:
        before = threading.active_count()
        pairs = [ready(pair) for _ in range(20)]
        found = await asyncio.gather(*(t for _, sent, received in pairs for t in (sent, received)))
        assert threading.active_count() == before
        assert await pairs[0][2] is pairs[0][0]
        return found[1::2]

    assert all(y.tolist() == [1, 1] for y in asyncio.run(several()))


def test_awaiting_raises_the_error_and_can_be_given_up(pair: Pair) -> None:
    async def impatient() -> None:
        waiting = pair.never_sent()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 0.01)
        assert not waiting.done()
        asyncio.get_running_loop().call_later(0.01, waiting.cancel)
        with pytest.raises(tent.TransferCancelled):
            await waiting

    asyncio.run(impatient())


def test_a_loop_that_was_closed_is_no_problem(pair: Pair) -> None:
    async def leave() -> tent.Transfer:
        waiting = pair.never_sent()
        asyncio.ensure_future(waiting)  # noqa: RUF006
        await asyncio.sleep(0)
        return waiting

    waiting = asyncio.run(leave())
    assert waiting.cancel()
    y, _, received = ready(pair)
    assert received.wait(WAIT_S) is y


def test_a_wait_that_times_out_leaves_the_transfer_going(pair: Pair) -> None:
    y = torch.zeros(2)
    received = pair.b.recv(y, 0, 5, group=pair.group_b)
    began = time.monotonic()
    with pytest.raises(tent.TransferTimeout, match=r"0\.05 s.*goes on.*cancel\(\)"):
        received.wait(0.05)
    assert 0.05 <= time.monotonic() - began < 5
    with pytest.raises(TimeoutError):
        received.exception(0)
    with pytest.raises(RuntimeError, match="has not ended"):
        received.value()
    assert not received.done()
    pair.a.send(torch.ones(2), 1, 5, group=pair.group_a)
    assert received.wait(WAIT_S) is y


def test_a_transfer_whose_timeout_passes_fails(pair: Pair) -> None:
    received = pair.b.recv(torch.zeros(2), 0, 6, group=pair.group_b, timeout=0.05)
    with pytest.raises(tent.TransferTimeout) as caught:
        received.wait(WAIT_S)
    assert received.done()
    assert received.exception() is caught.value
    unasked = pair.b.recv(torch.zeros(2), 0, 6, group=pair.group_b, timeout=0.05)
    until(torch.futures.collect_all([unasked]).done)


def test_cancel_frees_the_memory(pair: Pair) -> None:
    y = torch.zeros(2)
    received = pair.b.recv(y, 0, 8, group=pair.group_b)
    assert received.cancel()
    assert received.done()
    y.fill_(3)
    x = torch.ones(2)
    again = pair.b.recv(torch.zeros(2), 0, 8, group=pair.group_b)
    pair.a.send(x, 1, 8, group=pair.group_a).wait(WAIT_S)
    again.wait(WAIT_S)
    assert y.tolist() == [3, 3]
    assert not again.cancel()
    assert again.exception() is None
    with pytest.raises(tent.TransferCancelled):
        received.wait()
    with pytest.raises(tent.TransferCancelled):
        received.value()


def test_cancel_wakes_those_who_wait(pair: Pair) -> None:
    waiting = pair.never_sent()
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.wait(WAIT_S)
        except tent.TentError as error:
            caught.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.01)
    waiting.cancel()
    for thread in threads:
        thread.join(WAIT_S)
    assert [type(error) for error in caught] == [tent.TransferCancelled] * 3


BIG = 1 << 16  # Elements; small sends end when the peer's engine has them, received or not.


def test_both_ends_say_what_differed(pair: Pair) -> None:
    received = pair.b.recv(torch.zeros(BIG + 1), 0, 9, group=pair.group_b)
    sent = pair.a.send(torch.ones(BIG), 1, 9, group=pair.group_a)
    for transfer, peer in ((sent, pair.b), (received, pair.a)):
        error = transfer.exception(WAIT_S)
        assert type(error) is tent.TransferError
        assert str(4 * BIG) in str(error)
        assert str(4 * BIG + 4) in str(error)
        assert error.peer == peer.card.name


@pytest.mark.parametrize("count", [2, BIG])
def test_dtypes_must_agree(pair: Pair, count: int) -> None:
    y = torch.zeros(count)
    received = pair.b.recv(y, 0, 10, group=pair.group_b)
    sent = pair.a.send(torch.ones(count, dtype=torch.int32), 1, 10, group=pair.group_a)
    assert "dtype" in str(received.exception(WAIT_S))
    sent.exception(WAIT_S)
    assert not y.any()
    assert count == 2 or "dtype" in str(sent.exception())


def test_the_report_accounts_for_every_byte(pair: Pair) -> None:
    x, y = torch.ones(1 << 18), torch.zeros(1 << 18)
    sent, received = pair.exchange(x, y)
    for transfer, peer in ((sent, pair.b), (received, pair.a)):
        report = transfer.report()
        assert report["bytes"] == 1 << 20
        assert 0 < report["seconds"] < WAIT_S
        assert report["peer"] == peer.card.name
        assert (report["retries"], report["fences"]) == (0, 0)
        assert isinstance(report["path"], str)
    report = sent.report()
    assert sum(report["rails"].values()) == 1 << 20
    assert report["rails"].keys() == report["slices"].keys()
    assert all(count >= 1 for count in report["slices"].values())
    waiting = pair.never_sent()
    with pytest.raises(RuntimeError, match="not ended"):
        waiting.report()
    waiting.cancel()


def test_the_source_is_the_senders_rank(pair: Pair) -> None:
    anyone = pair.b.recv(torch.zeros(2), group=pair.group_b)
    assert anyone.source is None
    sent = pair.a.send(torch.ones(2), 1, group=pair.group_a)
    anyone.wait(WAIT_S)
    assert anyone.source == 0
    assert sent.source == 0


def test_the_gil_is_free_while_one_waits(pair: Pair) -> None:
    waiting = pair.never_sent()
    thread = threading.Thread(target=waiting.exception)
    thread.start()
    began, turns = time.perf_counter(), 0
    while time.perf_counter() - began < 0.1:
        turns += 1
    waiting.cancel()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert turns > 1000


def test_many_threads_at_once(pair: Pair) -> None:
    wrong: list[Any] = []

    def both(tag: int) -> None:
        for turn in range(30):
            x, y = torch.full((64,), float(turn)), torch.empty(64)
            sent = pair.a.send(x, 1, tag, group=pair.group_a)
            received = pair.b.recv(y, 0, tag, group=pair.group_b)
            if received.wait(WAIT_S) is not y or not torch.equal(x, y) or sent.wait(WAIT_S):
                wrong.append((tag, turn))

    threads = [threading.Thread(target=both, args=(100 + n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * WAIT_S)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_closing_ends_what_goes_on() -> None:
    with two_engines() as pair:
        waiting = pair.never_sent()
        unasked = torch.futures.collect_all([pair.never_sent()])
        pair.b.close()
        assert isinstance(waiting.exception(WAIT_S), tent.TransferError)
        until(unasked.done)
        with pytest.raises(RuntimeError, match="closed"):
            pair.b.send(torch.ones(1), 0, group=pair.group_b)
