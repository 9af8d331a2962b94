"""Tests of torch_tent.segment: views mean what they mean for tensors; rights and life spans."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_tent as tent
from tests.pairs import WAIT_S, Pair, two_engines
from torch_tent import segment
from torch_tent.ticket import TensorLayout, Ticket


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with two_engines() as found:
        yield found


def shared(pair: Pair, x: Any, access: Any = "read-write") -> tuple[tent.Segment, Any]:
    """A segment of b, opened by a."""
    exported = pair.b.register(x, access)
    return exported, pair.a.open(exported.ticket())


def layout_of(x: torch.Tensor) -> TensorLayout:
    return segment.tensor_layout(x, 0)


BASE = torch.arange(4 * 5 * 6, dtype=torch.int32).reshape(4, 5, 6)
ENTRIES = st.one_of(
    st.integers(-4, 3),
    st.builds(slice, *[st.none() | st.integers(-7, 7)] * 2, st.none() | st.integers(1, 4)),
)
INDICES = st.one_of(
    ENTRIES,
    st.lists(ENTRIES, max_size=3).map(tuple),
    st.tuples(ENTRIES, st.just(...)),
    st.tuples(st.just(...), ENTRIES),
    st.tuples(ENTRIES, st.just(...), ENTRIES),
    st.just(...),
)


@given(INDICES)
def test_a_view_is_that_of_torch(index: Any) -> None:
    found, wanted = segment.view(layout_of(BASE), index), BASE[index]
    assert found.shape == tuple(wanted.shape)
    if wanted.numel():
        assert found.offset_bytes == wanted.storage_offset() * 4
        steps = [stride * 4 for stride in wanted.stride()]
        pairs = zip(found.strides_bytes, steps, found.shape, strict=True)
        assert all(mine == theirs for mine, theirs, count in pairs if count > 1)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (4, IndexError, "index 4 is out of range for dimension 0 of size 4"),
        ((0, -6), IndexError, "index -6 is out of range for dimension 1 of size 5"),
        ((0, 0, 0, 0), IndexError, "4 indices for 3 dimensions"),
        ((..., ...), IndexError, r"one '\.\.\.'"),
        (slice(None, None, -1), ValueError, "step -1"),
        (slice(None, None, 0), ValueError, "step 0"),
        (None, TypeError, "indexed with None"),
        (True, TypeError, "indexed with bool"),
        (1.0, TypeError, "indexed with float"),
        ([0, 1], TypeError, "indexed with list"),
        (torch.tensor(1), TypeError, "indexed with Tensor"),
    ],
)
def test_indices_that_are_no_views_are_named(index: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        segment.view(layout_of(BASE), index)


def test_what_is_remote_looks_like_a_tensor(pair: Pair) -> None:
    exported, remote = shared(pair, torch.zeros(7, 3, dtype=torch.bfloat16), "write")
    assert (remote.shape, remote.dtype) == ((7, 3), torch.bfloat16)
    assert (exported.shape, exported.dtype, exported.access) == ((7, 3), torch.bfloat16, "write")
    assert (remote.device, remote.access, len(remote)) == (torch.device("cpu"), "write", 7)
    assert remote.peer == pair.b.card.name
    assert remote[3:7].shape == (4, 3)
    assert remote[np.int64(2), 1].shape == ()
    assert len(list(remote)) == 7
    assert "bfloat16" in repr(remote[0])
    assert "write" in repr(exported)
    with pytest.raises(TypeError, match="0 dimensions"):
        len(remote[0, 0])


def test_writes_and_reads_of_views(pair: Pair) -> None:
    memory = torch.zeros(8, 6)
    _, remote = shared(pair, memory)
    assert pair.a.write(torch.ones(4, 6), remote[3:7]).wait(WAIT_S) is None
    assert memory.sum(1).tolist() == [0, 0, 0, 6, 6, 6, 6, 0]
    pair.a.write(torch.full((2, 3), 2.0), remote[::7, 1::2]).wait(WAIT_S)
    assert memory[0].tolist() == memory[7].tolist() == [0, 2, 0, 2, 0, 2]
    pair.a.write(torch.tensor(9.0), remote[2, 2]).wait(WAIT_S)
    assert memory[2, 2] == 9
    column = torch.zeros(6, 8)
    assert pair.a.read(remote, out=column.T).wait(WAIT_S) is not None
    assert torch.equal(column.T, memory)
    fetched = pair.a.read(remote[..., 2]).wait(WAIT_S)
    assert fetched is not None
    assert fetched.tolist() == memory[:, 2].tolist()
    assert pair.a.read(remote[3:3]).wait(WAIT_S).shape == (0, 6)  # type: ignore[union-attr]
    pair.a.write(torch.zeros(8, 0), remote[:, 6:]).wait(WAIT_S)


def test_large_and_strided_memory(pair: Pair) -> None:
    memory = torch.zeros(1000, 3, 500)
    _, remote = shared(pair, memory[:, 1])
    x = torch.randn(1000, 500)
    pair.a.write(x, remote).wait(WAIT_S)
    assert torch.equal(memory[:, 1], x)
    assert not memory[:, ::2].any()
    assert torch.equal(pair.a.read(remote[::3]).wait(WAIT_S), x[::3])  # type: ignore[arg-type]


def test_the_source_names_who_sends(pair: Pair) -> None:
    _, remote = shared(pair, torch.zeros(3))
    assert pair.a.write(torch.ones(3), remote).source == pair.a.card.name
    assert pair.a.read(remote).source == pair.b.card.name


def test_what_does_not_fit_is_named_at_the_call(pair: Pair) -> None:
    exported, remote = shared(pair, torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"shapes differ: \(6, 4\) here, \(4, 6\) in "):
        pair.a.write(torch.zeros(6, 4), remote)
    with pytest.raises(ValueError, match=r"\(24,\) here"):
        pair.a.read(remote, out=torch.zeros(24))
    with pytest.raises(TypeError, match=r"torch.float64 here, torch.float32 in "):
        pair.a.write(torch.zeros(4, 6, dtype=torch.float64), remote)
    with pytest.raises(ValueError, match="share memory"):
        pair.a.read(remote, out=torch.zeros(1, 6).expand(4, 6))
    for wrong in (exported, exported.ticket(), torch.zeros(4, 6), None):
        with pytest.raises(TypeError, match="what open"):
            pair.a.write(torch.zeros(4, 6), wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another Engine"):
        pair.b.write(torch.zeros(4, 6), remote)
    with pytest.raises(TypeError, match=r"Segment.ticket\(\)"):
        pair.a.open(exported)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"access is 'all'.*'read-write'"):
        pair.b.register(torch.zeros(1), "all")  # type: ignore[arg-type]


def test_rights_are_checked_at_the_call(pair: Pair) -> None:
    _, readable = shared(pair, torch.zeros(3), "read")
    _, writable = shared(pair, torch.zeros(3), "write")
    with pytest.raises(tent.AccessError, match=r"allows 'read', not to write.*access='write'"):
        pair.a.write(torch.ones(3), readable)
    with pytest.raises(tent.AccessError, match="allows 'write', not to read"):
        pair.a.read(writable)


def test_the_owner_checks_rights_and_bounds_himself(pair: Pair) -> None:
    memory = torch.zeros(8)
    exported = pair.b.register(memory[2:4], "read")
    honest = Ticket.decode(exported.ticket())
    wider = TensorLayout(0, 0, (6,), (4,), "float32", 4)
    forged = [
        (honest.key, "read-write", honest.planes_bytes, honest.tensors),  # rights
        (honest.key ^ 1, "read-write", honest.planes_bytes, honest.tensors),  # key
        (honest.key, "read-write", (24,), (wider,)),  # bounds
    ]
    for key, access, planes, layouts in forged:
        ticket = Ticket(honest.card, honest.segment, key, 0, access, "cpu", planes, layouts)
        remote: Any = pair.a.open(ticket.encode())
        error = pair.a.write(torch.ones(remote.shape), remote).exception(WAIT_S)
        assert type(error) is tent.AccessError
    error = pair.a.read(remote).exception(WAIT_S)
    assert type(error) is tent.AccessError
    assert not memory.any()


def test_a_closed_segment_is_closed_to_all(pair: Pair) -> None:
    memory = torch.zeros(3)
    exported, remote = shared(pair, memory)
    exported.close()
    exported.close()
    for transfer in (pair.a.write(torch.ones(3), remote), pair.a.read(remote)):
        error = transfer.exception(WAIT_S)
        assert type(error) is tent.AccessError
        assert "closed" in str(error)
    assert not memory.any()
    with pytest.raises(tent.AccessError, match="closed"):
        exported.ticket()
    with pair.b.register(memory) as again:
        again.ticket()
    with pytest.raises(tent.AccessError):
        again.ticket()


def test_a_segment_stays_open_as_long_as_its_memory_lives(pair: Pair) -> None:
    memory, array = torch.full((3,), 4.0), np.full(3, 5.0)
    remotes: list[Any] = [pair.a.open(pair.b.register(x).ticket()) for x in (memory[:2], array)]
    gc.collect()
    found: list[Any] = [pair.a.read(remote).wait(WAIT_S) for remote in remotes]
    assert [x.tolist() for x in found] == [[4, 4], [5, 5, 5]]
    kept = memory[2:]
    del memory, array
    gc.collect()
    assert pair.a.read(remotes[0]).exception(WAIT_S) is None
    assert type(pair.a.read(remotes[1]).exception(WAIT_S)) is tent.AccessError
    del kept
    assert type(pair.a.read(remotes[0]).exception(WAIT_S)) is tent.AccessError


def test_a_segment_object_keeps_its_memory(pair: Pair) -> None:
    exported = pair.b.register(torch.full((3,), 4.0))
    gc.collect()
    remote: Any = pair.a.open(exported.ticket())
    assert pair.a.read(remote).wait(WAIT_S).tolist() == [4, 4, 4]  # type: ignore[union-attr]


def test_tickets_that_are_none_are_named(pair: Pair) -> None:
    good = pair.b.register(torch.zeros(3)).ticket()
    for bad in (b"", b"hello", good[:-1], good + b"x", good[:40] + b"\0" + good[41:]):
        with pytest.raises(tent.TicketError):
            pair.a.open(bad)
    with pytest.raises(tent.TentError, match=r"own memory.*copy_"):
        pair.b.open(good)
    honest = Ticket.decode(good)
    strange = TensorLayout(0, 0, (3,), (4,), "float5_e1m1", 4)
    ticket = Ticket(honest.card, honest.segment, honest.key, 0, "read", "cpu", (12,), (strange,))
    with pytest.raises(tent.TicketError, match=r"'float5_e1m1'.*does not have"):
        pair.a.open(ticket.encode())


def test_what_cannot_be_shared_is_named(pair: Pair) -> None:
    with pytest.raises(ValueError, match="share memory"):
        pair.b.register(torch.zeros(1).expand(3), "write")
    with pytest.raises(ValueError, match="conjugated"):
        pair.b.register(torch.zeros(3, dtype=torch.complex64).conj())
    expanded: Any = pair.a.open(pair.b.register(keep := torch.ones(1).expand(3)).ticket())
    assert pair.a.read(expanded).wait(WAIT_S).tolist() == [1, 1, 1]  # type: ignore[union-attr]
    assert keep.shape == (3,)


def test_registered_storage_cannot_be_resized(pair: Pair) -> None:
    """Peers go by addresses: torch refuses at the call that would move the memory."""
    x = torch.ones(1000, dtype=torch.bfloat16)
    with pair.a.register(x[10:20]):
        with pytest.raises(RuntimeError, match="not resizable"):
            x.resize_(5000)
        with pytest.raises(RuntimeError, match="not resizable"):
            x.untyped_storage().resize_(0)
