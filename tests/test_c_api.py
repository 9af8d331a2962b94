"""Stage: tests. The function table of csrc/engine/c_api.h, called as the backend calls it."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

import numpy as np
import pytest

from tests.engine_pairs import Pair, noise, pair
from torch_tent import _engine

OK, FAILED, TIMEOUT, CANCELLED = 0, 1, 4, 5
BROADCAST, ALL_REDUCE, BARRIER = 0, 1, 8
SUM, F32 = 0, 7
FOREVER, WAIT_NS = -1, 20 * 10**9


class Buffer(Structure):
    _fields_ = [("address", c_uint64), ("bytes", c_uint64)]


class Place(Structure):
    _fields_ = [("device", c_int32), ("stream", c_uint64)]


HOST = Place(-1, 0)


class Compute(Structure):
    _fields_ = [("context", c_void_p), ("start", c_void_p), ("scratch", Buffer)]


class Call(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("kind", "reduce", "dtype", "root")),
        ("inputs", POINTER(Buffer)),
        ("input_count", c_size_t),
        ("outputs", POINTER(Buffer)),
        ("output_count", c_size_t),
        ("tag", c_uint64),
        ("timeout_ns", c_int64),
        ("place", Place),
        ("compute", Compute),
    ]


END = CFUNCTYPE(None, c_void_p)
MESSAGE = CFUNCTYPE(c_void_p, c_void_p, c_uint64, c_int32, c_uint64, Buffer, Place, c_int64)


class Api(Structure):
    _fields_ = [
        ("version", c_uint32),
        ("engine", c_void_p),
        (
            "group_create",
            CFUNCTYPE(c_uint64, c_void_p, c_uint64, c_int32, c_int32, POINTER(c_uint32)),
        ),
        ("group_destroy", CFUNCTYPE(None, c_void_p, c_uint64)),
        ("group_abort", CFUNCTYPE(None, c_void_p, c_uint64, c_char_p)),
        ("send", MESSAGE),
        ("recv", MESSAGE),
        ("collective", CFUNCTYPE(c_void_p, c_void_p, c_uint64, POINTER(Call))),
        ("scratch_bytes", CFUNCTYPE(c_uint64, c_void_p, c_uint64, POINTER(Call))),
        ("computed", CFUNCTYPE(None, c_void_p, c_void_p, c_uint64, c_char_p)),
        (
            "can_use",
            CFUNCTYPE(c_int, c_void_p, Place, POINTER(Buffer), c_size_t, c_char_p, c_size_t),
        ),
        ("done", CFUNCTYPE(c_int, c_void_p)),
        ("wait", CFUNCTYPE(c_int, c_void_p, c_int64)),
        ("status", CFUNCTYPE(c_int32, c_void_p, c_char_p, c_size_t, POINTER(c_int32))),
        ("cancel", CFUNCTYPE(None, c_void_p)),
        ("when_done", CFUNCTYPE(None, c_void_p, END, c_void_p)),
        ("release", CFUNCTYPE(None, c_void_p)),
    ]


class Work:
    """One work of the table; released with the object."""

    def __init__(self, api: Any, pointer: int) -> None:
        self._api, self._pointer = api, pointer

    def __del__(self) -> None:
        self._api.release(self._pointer)

    def wait(self, timeout_ns: int = WAIT_NS) -> bool:
        return bool(self._api.wait(self._pointer, timeout_ns))

    def status(self) -> tuple[int, str, int]:
        text, source = ctypes.create_string_buffer(200), c_int32()
        code = self._api.status(self._pointer, text, 200, ctypes.byref(source))
        return code, text.value.decode(), source.value

    def cancel(self) -> None:
        self._api.cancel(self._pointer)

    def when_done(self, fn: Any) -> None:
        self._api.when_done(self._pointer, fn, None)


class Rank:
    """One rank of a group of two. Keeps the memory that it was given."""

    def __init__(self, engine: _engine.Engine, rank: int, peer: int) -> None:
        self._kept: list[Any] = []
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]
        address = pointer(engine.c_api, b"torch_tent.engine")
        self.api = Api.from_address(address)
        assert self.api.version == 3
        peers = (c_uint32 * 2)(*([peer, peer]))
        self.group = self.api.group_create(self.api.engine, 40, rank, 2, peers)
        assert self.group != 0

    def send(self, to: int, array: Any, tag: int = 1, timeout_ns: int = FOREVER) -> Work:
        return self._message(self.api.send, to, array, tag, timeout_ns)

    def recv(self, source: int, array: Any, tag: int = 1, timeout_ns: int = FOREVER) -> Work:
        return self._message(self.api.recv, source, array, tag, timeout_ns)

    def _message(self, call: Any, rank: int, array: Any, tag: int, timeout_ns: int) -> Work:
        self._kept.append(array)
        memory = Buffer(array.ctypes.data, array.nbytes)
        return Work(
            self.api, call(self.api.engine, self.group, rank, tag, memory, HOST, timeout_ns)
        )

    def collective(self, kind: int, inputs: list[Any], outputs: list[Any], tag: int) -> Work:
        self._kept += [*inputs, *outputs]
        ins = (Buffer * len(inputs))(*(Buffer(a.ctypes.data, a.nbytes) for a in inputs))
        outs = (Buffer * len(outputs))(*(Buffer(a.ctypes.data, a.nbytes) for a in outputs))
        call = Call(kind, SUM, F32, 0, ins, len(ins), outs, len(outs), tag, WAIT_NS, HOST)
        made = self.api.collective(self.api.engine, self.group, ctypes.byref(call))
        return Work(self.api, made)


@contextmanager
def two_ranks() -> Iterator[tuple[Rank, Rank, Pair]]:
    with pair(["tcp", "cma"]) as two:
        yield Rank(two.a, 0, two.b_of_a), Rank(two.b, 1, two.a_of_b), two


def test_messages_between_ranks_name_their_source() -> None:
    with two_ranks() as (zero, one, _):
        for source in (0, -1):
            x, y = noise(100_000), np.zeros(100_000, np.uint8)
            recv, send = one.recv(source, y), zero.send(1, x)
            assert recv.wait()
            assert send.wait()
            assert recv.status() == (OK, "", 0)
            assert np.array_equal(x, y)


def test_collectives_run_and_call_back_once() -> None:
    with two_ranks() as ranks:
        called: list[int] = []
        told = threading.Event()

        @END
        def end(_: int) -> None:
            called.append(1)
            told.set()

        x = [np.full(5000, float(n + 1), np.float32) for n in range(2)]
        y = [np.zeros(5000, np.float32) for _ in range(2)]
        works = [ranks[n].collective(ALL_REDUCE, [x[n]], [y[n]], 7) for n in range(2)]
        works[0].when_done(end)
        assert all(work.wait() for work in works)
        assert [work.status()[0] for work in works] == [OK, OK]
        assert all((part == 3.0).all() for part in y)
        assert told.wait(20)
        barriers = [ranks[n].collective(BARRIER, [], [], 8) for n in range(2)]
        assert all(work.wait() for work in barriers)
        told.clear()
        works[1].when_done(end)  # At once: it has ended.
        assert told.wait(20)
        assert called == [1, 1]


def test_works_that_cannot_begin_say_why() -> None:
    with two_ranks() as (zero, one, two):
        x = noise(8)
        for rank in (0, 2, -1):
            work = zero.send(rank, x)
            assert work.wait(0)
            assert work.status()[:1] == (FAILED,)
            assert f"rank {rank} " in work.status()[1]
        zero.api.group_destroy(zero.api.engine, zero.group)
        assert "destroyed" in zero.send(1, x).status()[1]
        two.b.close()
        assert "closed" in one.send(0, x).status()[1]


def test_timeouts_and_cancels_end_a_work() -> None:
    with two_ranks() as (zero, _, _two):
        y = np.zeros(8, np.uint8)
        late = zero.recv(1, y, timeout_ns=10**7)
        assert late.wait()
        assert late.status()[0] == TIMEOUT
        endless = zero.recv(1, y)
        assert not endless.wait(10**6)
        endless.cancel()
        assert endless.wait()
        assert endless.status()[0] == CANCELLED


@pytest.mark.parametrize("how", ["abort", "destroy", "close"])
def test_the_end_of_a_group_ends_its_works(how: str) -> None:
    with two_ranks() as (zero, _, two):
        y, z = np.zeros(8, np.uint8), np.zeros(8, np.float32)
        works = [zero.recv(1, y), zero.collective(ALL_REDUCE, [z], [z], 3)]
        waiting = threading.Thread(target=works[0].wait, args=(FOREVER,))
        waiting.start()
        began = time.monotonic()
        if how == "abort":
            zero.api.group_abort(zero.api.engine, zero.group, b"a test says so")
        elif how == "destroy":
            zero.api.group_destroy(zero.api.engine, zero.group)
        else:
            two.a.close()
        waiting.join(20)
        assert all(work.wait() for work in works)
        assert time.monotonic() - began < 5
        assert [work.status()[0] for work in works] == [CANCELLED, CANCELLED]
        if how == "abort":
            assert "a test says so" in works[0].status()[1]
            assert "a test says so" in zero.send(1, y).status()[1]
