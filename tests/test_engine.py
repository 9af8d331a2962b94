"""Stage: tests. The engine room as its callers meet it: transfers, waiting, closing, forking."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from tests.engine_pairs import KINDS, WAIT_S, layout, noise, pair, succeeded, thread_names
from torch_tent import _engine

TIMEOUT, CANCELLED, PEER_LOST, ACCESS = 4, 5, 2, 3
SIZES = (0, 1, 8, 4095, 8192, 8193, 100_000, 1 << 20, 5_000_001)
LINKS = [[kind] for kind in KINDS] + [["tcp", "tcp"], list(KINDS)]


@pytest.mark.parametrize("kinds", LINKS, ids="+".join)
def test_messages_arrive_exactly_in_every_size(kinds: list[str]) -> None:
    with pair(kinds) as two:
        for size in SIZES:
            x, y = noise(size), np.zeros(size, np.uint8)
            recv, send = two.recv(y), two.send(x)
            assert succeeded(recv, send)
            assert np.array_equal(x, y)
            assert recv.report()["peer"] == two.a_of_b
            assert send.report()["bytes"] == recv.report()["bytes"] == size


@pytest.mark.parametrize("kinds", LINKS, ids="+".join)
def test_one_sided_writes_and_reads_arrive_exactly(kinds: list[str]) -> None:
    with pair(kinds) as two:
        for size in SIZES[1:]:
            memory, x, back = np.zeros(size, np.uint8), noise(size), np.zeros(size, np.uint8)
            planes = [(memory.ctypes.data, memory.nbytes, 0)]
            segment, key = two.b.register(planes, True, True, 0)
            place = _engine.Layout.contiguous(0, size)
            note = b"landed" if size % 2 else None
            write = two.a.write(two.b_of_a, layout(x), segment, key, 0, place, note, {})
            assert succeeded(write)
            assert np.array_equal(memory, x)
            expected = [(two.a_of_b, b"landed")] if note else []
            assert two.b.notifications(segment) == expected
            assert succeeded(two.a.read(two.b_of_a, layout(back), segment, key, 0, place, {}))
            assert np.array_equal(back, x)
            two.b.close_segment(segment)


@pytest.mark.parametrize("kind", KINDS)
def test_scattered_blocks_land_where_their_indices_say(kind: str) -> None:
    blocks, size = 64, 3000
    with pair([kind]) as two:
        source, memory = noise(blocks * size), np.zeros(blocks * size, np.uint8)
        order = np.random.default_rng(2).permutation(blocks).astype(np.int64)
        planes = [(memory.ctypes.data, memory.nbytes, size)]
        segment, key = two.b.register(planes, False, True, blocks)
        local = _engine.Layout([(source.ctypes.data, 0, size, [(blocks, size)], None)])
        remote = _engine.Layout([(0, 0, size, [(blocks, size)], order)])
        assert succeeded(two.a.write(two.b_of_a, local, segment, key, 0, remote, None, {}))
        assert np.array_equal(memory.reshape(blocks, size)[order], source.reshape(blocks, size))
        assert two.b.revoke(segment, order[:1]) == 1 == two.b.epoch(segment)
        late = two.a.write(two.b_of_a, local, segment, key, 0, remote, None, {})
        assert late.wait(WAIT_S)
        assert late.status()[0] == ACCESS


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_at_once_get_their_own_bytes(kind: str) -> None:
    failures: list[str] = []

    def talk(number: int, two_way: tuple[int, int, int]) -> None:
        sender, receiver, rounds = two_way
        rng = np.random.default_rng(number)
        for n in range(rounds):
            size = int(rng.choice([8, 3000, 40_000, 400_000]))
            x, y = noise(size, number * 1000 + n), np.zeros(size, np.uint8)
            send = engines[sender].send(peers[sender], 1, number, 0, layout(x), {})
            recv = engines[receiver].recv(peers[receiver], 1, number, 0, layout(y), {})
            if not succeeded(recv, send) or not np.array_equal(x, y):
                failures.append(f"thread {number}, round {n}: {send.status()} {recv.status()}")

    with pair([kind]) as two:
        engines, peers = (two.a, two.b), (two.b_of_a, two.a_of_b)
        threads = [
            threading.Thread(target=talk, args=(n, (n % 2, 1 - n % 2, 25))) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert two.a.stats()["transfers"]["outstanding"] == 0


def test_transfers_end_without_anybody_waiting() -> None:
    with pair() as two:
        x, y = noise(3_000_000), np.zeros(3_000_000, np.uint8)
        recv, send = two.recv(y), two.send(x)
        until = time.monotonic() + WAIT_S
        while not (recv.done() and send.done()) and time.monotonic() < until:
            time.sleep(0.001)
        assert np.array_equal(x, y)


def test_the_other_same_host_link_carries_on_when_the_better_one_dies() -> None:
    size = 64 << 20
    with pair(["shm", "cma"]) as two:
        memory, y = two.a.allocate(size), np.zeros(size, np.uint8)
        x = np.frombuffer(memory, np.uint8)
        x[:] = noise(size)
        recv, send = two.recv(y), two.send(x)
        two.a.close_link(min(two.links), "a test wants it")
        assert succeeded(recv, send)
        assert np.array_equal(x, y)
        assert send.report()["rails"]["cma"][0] > 0


def test_many_sleepers_are_all_served() -> None:
    with pair(["shm"]) as two:
        boxes = [np.zeros(8, np.uint8) for _ in range(16)]
        recvs = [two.recv(box, tag=n) for n, box in enumerate(boxes)]
        ends: list[bool] = []
        threads = [
            threading.Thread(target=lambda op=op: ends.append(op.wait(WAIT_S))) for op in recvs
        ]
        for thread in threads:
            thread.start()
        sends = [two.send(noise(8, n), tag=n) for n in range(16)]
        for thread in threads:
            thread.join()
        assert ends == [True] * 16
        assert succeeded(*sends)
        assert all(np.array_equal(box, noise(8, n)) for n, box in enumerate(boxes))


def test_a_wait_ends_at_its_timeout_and_the_transfer_goes_on() -> None:
    with pair() as two:
        y = np.zeros(8, np.uint8)
        recv = two.recv(y)
        began = time.monotonic()
        assert not recv.wait(0.05)
        assert 0.05 <= time.monotonic() - began < 2
        assert not recv.wait(0.0)
        with pytest.raises(RuntimeError, match="not ended"):
            recv.status()
        assert succeeded(two.send(noise(8)), recv)


def test_a_transfer_ends_at_its_own_timeout() -> None:
    with pair() as two:
        recv = two.recv(np.zeros(8, np.uint8), timeout=0.02)
        assert recv.wait(WAIT_S)
        code, text, _ = recv.status()
        assert code == TIMEOUT
        assert "timeout" in text


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_transfers_end_and_the_next_ones_work(kind: str) -> None:
    with pair([kind]) as two:
        recv, send = two.recv(np.zeros(8, np.uint8), tag=1), two.send(noise(1 << 20), tag=2)
        recv.cancel()
        send.cancel()
        assert recv.wait(WAIT_S)
        assert send.wait(WAIT_S)
        assert recv.status()[0] == send.status()[0] == CANCELLED
        recv.cancel()  # Too late, and no error.
        y = np.zeros(8, np.uint8)
        assert succeeded(two.recv(y, tag=3), two.send(noise(8), tag=3))


def test_close_ends_every_wait() -> None:
    before = thread_names()
    with pair(["tcp", "shm"]) as two:
        memory = np.zeros(8)
        segment, _ = two.b.register([(memory.ctypes.data, 8, 0)], True, True, 0)
        recvs = [two.recv(np.zeros(8, np.uint8), tag=n) for n in range(3)]
        heard: list[object] = []

        def hear(call: object) -> None:
            try:
                heard.append(call())  # type: ignore[operator]
            except RuntimeError as error:
                heard.append(str(error))

        calls = [lambda: two.b.wait_notification(segment, None), lambda: endless(two.b)]
        calls += [lambda op=op: op.wait(None) for op in recvs]
        threads = [threading.Thread(target=hear, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        time.sleep(0.02)  # Not for luck: in any order of things all must end.
        two.b.close()
        for thread in threads:
            thread.join(WAIT_S)
        assert sorted(map(str, heard)) == ["True"] * 3 + ["the engine is closed"] * 2
        assert [op.status()[0] for op in recvs] == [CANCELLED] * 3
        with pytest.raises(RuntimeError, match="closed"):
            two.recv(np.zeros(8, np.uint8))
        two.b.close()  # Again, and no error.
        late = two.send(noise(8), tag=9)
        assert late.wait(WAIT_S)
        assert late.status()[0] == PEER_LOST
    assert thread_names() == before


def endless(engine: _engine.Engine) -> None:
    while True:
        engine.next_events(None)


def test_an_engine_that_nobody_keeps_closes_itself() -> None:
    before = thread_names()
    with pair() as two:
        told = threading.Event()
        two.a.on_done(lambda ids: told.set())
    del two
    assert thread_names() == before


def test_a_child_of_fork_is_told_and_the_parent_goes_on() -> None:
    with pair(["tcp", "shm"]) as two:
        y = np.zeros(8, np.uint8)
        recv = two.recv(y)
        pid = os.fork()
        if pid == 0:
            os._exit(judge_from_child(two, recv))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert succeeded(two.send(noise(8)), recv)
        assert np.array_equal(y, noise(8))


def judge_from_child(two: object, recv: _engine.Operation) -> int:
    """0 when every call says that this is a child, and the links are closed in it."""
    calls = [
        lambda: two.recv(np.zeros(8, np.uint8)),  # type: ignore[attr-defined]
        lambda: recv.wait(None),
        lambda: recv.cancel(),
        lambda: two.a.allocate(4096),  # type: ignore[attr-defined]
        lambda: two.a.stats(),  # type: ignore[attr-defined]
    ]
    for number, call in enumerate(calls, 1):
        try:
            call()
            return number
        except RuntimeError as error:
            if "fork" not in str(error):
                return 10 + number
    for fds in two.links.values():  # type: ignore[attr-defined]
        for fd in fds:
            try:
                os.fstat(fd)
                return 20
            except OSError:
                pass
    two.close()  # type: ignore[attr-defined]
    return 0


def test_an_idle_engine_costs_next_to_nothing() -> None:
    with pair(["tcp", "shm", "cma"]) as two:
        assert succeeded(two.recv(np.zeros(8, np.uint8)), two.send(noise(8)))
        began = time.process_time()
        time.sleep(0.5)  # What is measured.
        assert time.process_time() - began < 0.1
