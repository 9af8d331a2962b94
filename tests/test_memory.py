"""Tests of torch_tent.memory: ordinary tensors in shareable memory, freed with the last user."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pairs import Pair, two_engines, until
from torch_tent import tensors


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with two_engines() as found:
        yield found


def is_shared(address: int) -> bool:
    """Whether shareable memory is mapped at this address now."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return "memfd" in line
    return False


@pytest.mark.parametrize("dtype", sorted(tensors.DTYPE_CODES, key=str), ids=str)
def test_every_dtype(pair: Pair, dtype: torch.dtype) -> None:
    x = pair.a.empty((3, 5), dtype)
    assert (x.shape, x.dtype, x.device.type) == ((3, 5), dtype, "cpu")
    assert x.is_contiguous()
    assert not x.requires_grad
    assert not x.view(torch.uint8).any()


def test_shapes_and_the_default_dtype(pair: Pair) -> None:
    assert pair.a.empty(7).shape == (7,)
    assert pair.a.empty([]).shape == ()
    assert pair.a.empty((4, 0)).shape == (4, 0)
    assert pair.a.empty(torch.Size([2, 2])).dtype == torch.get_default_dtype()


def test_it_is_an_ordinary_tensor(pair: Pair) -> None:
    x = pair.a.empty((64, 64))
    x.normal_()
    assert torch.equal(x @ torch.eye(64), x)
    assert x[3:5].untyped_storage().data_ptr() == x.data_ptr()
    x.requires_grad_()
    (x * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.eq(2).all()


def test_it_goes_with_the_last_tensor_that_uses_it(pair: Pair) -> None:
    x = pair.a.empty(1 << 20, torch.uint8)
    address = x.data_ptr()
    view = x[100:200]
    assert is_shared(address)
    del x
    gc.collect()
    view.fill_(7)
    assert is_shared(address)
    del view
    gc.collect()
    until(lambda: not is_shared(address))


def test_it_outlives_its_engine() -> None:
    with two_engines() as pair:
        x = pair.a.empty(1 << 16, torch.uint8)
    x.fill_(9)
    assert x.sum() == 9 << 16


def test_transfers_between_it(pair: Pair) -> None:
    x, y = pair.a.empty(1 << 20), pair.b.empty(1 << 20)

    def rails() -> set[str]:
        x.normal_()
        sent, _ = pair.exchange(x, y)
        assert torch.equal(x, y)
        return set(sent.report()["rails"])

    until(lambda: rails() == {"shm"})  # The first may go over whatever rail is up first.
    pair.exchange(x[1::2], y[: 1 << 19])
    assert torch.equal(x[1::2], y[: 1 << 19])


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((-1, 2), None, ValueError, r"shape \(-1, 2\) has a negative size"),
        ("ab", None, TypeError, "shape is 'ab'"),
        (1.5, None, TypeError, "shape is 1.5"),
        ((2,), "float32", TypeError, "dtype is 'float32'"),
        ((1 << 40, 1 << 40), None, ValueError, "more than there can be"),
    ],
)
def test_what_is_no_tensor_is_named(
    pair: Pair, shape: Any, dtype: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        pair.a.empty(shape, dtype)


def test_too_much_memory_is_an_error(pair: Pair) -> None:
    with pytest.raises((RuntimeError, MemoryError)):
        pair.a.empty(1 << 60, torch.uint8)
    assert pair.a.empty(8, torch.uint8).tolist() == [0] * 8
