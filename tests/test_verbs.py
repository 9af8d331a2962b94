"""Stage: tests. The engine's own look at tensors: what it takes as plain, and what it leaves to the
long way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import torch_tent as tent
from torch_tent import _engine, tensors


class Named(torch.Tensor):
    """A subclass: its memory is not looked into."""


def floats() -> torch.Tensor:
    return torch.arange(24.0).view(4, 6)


PLAIN = {
    "vector": torch.zeros(5),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 7),
    "rows of a matrix": floats()[1:3],
    "a part of a vector": torch.arange(9)[4:],
    "a row of one": floats()[:1, :].expand(1, 6),
    "the other format, of one image": torch.zeros(1, 1, 4, 4).to(memory_format=torch.channels_last),
    "resolved": torch.view_as_real(torch.zeros(3, dtype=torch.complex64)),
    "in shareable memory": tent.empty(100),
}
NOT_PLAIN = {
    "columns": floats()[:, 1:3],
    "transposed": floats().t(),
    "expanded": torch.zeros(1).expand(4),
    "complex": torch.zeros(3, dtype=torch.complex64),
    "negated": torch._neg_view(torch.zeros(3)),
    "with grad": torch.zeros(3, requires_grad=True),
    "a subclass": torch.zeros(3).as_subclass(Named),
    "a parameter": torch.nn.Parameter(torch.zeros(3)),
    "meta": torch.empty(3, device="meta"),
    "sparse": torch.zeros(3).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    "an array": np.zeros(3),
    "no tensor": "text",
    "nothing": None,
}
CONTEXT, TAG = 4711, 5


@pytest.fixture(scope="module")
def verbs() -> Iterator[_engine.Verbs]:
    engine = tent.Engine(name="verbs")
    yield engine.native.verbs()
    engine.close()


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_are_taken(verbs: _engine.Verbs, name: str) -> None:
    y = PLAIN[name]
    operation = verbs.recv(y, None, CONTEXT, TAG)
    assert operation is not None
    assert tensors.destination(y)[1].bytes == y.nbytes
    assert not operation.done()
    operation.cancel()
    assert operation.wait(10)


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_others_are_left_alone(verbs: _engine.Verbs, name: str) -> None:
    assert verbs.recv(NOT_PLAIN[name], None, CONTEXT, TAG) is None


@pytest.mark.parametrize("tag", [-1, 2**63, 2**64, True, 1.0, "tag", None, np.int64(3)])
def test_odd_tags_are_left_alone(verbs: _engine.Verbs, tag: Any) -> None:
    assert verbs.recv(torch.zeros(3), None, CONTEXT, tag) is None


# Sorted: workers of pytest-xdist must find the tests in one order.
REAL_DTYPES = sorted((d for d in tensors.DTYPE_CODES if not d.is_complex), key=str)


@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=str)
def test_dtypes_are_told_apart(verbs: _engine.Verbs, dtype: torch.dtype) -> None:
    y = torch.empty(4, dtype=dtype)
    place = (0, 1, 2, 0, _engine.Layout([]), (4,))
    other = next(code for d, code in tensors.DTYPE_CODES.items() if d != dtype)
    assert verbs.read(y, (*place, other)) is None
    assert verbs.read(y[:3], (*place, tensors.DTYPE_CODES[dtype])) is None


@pytest.mark.parametrize("given", [(), (torch.zeros(1),), (torch.zeros(1), 0, 0, 0, 0)])
def test_a_wrong_number_of_arguments_is_an_error(verbs: _engine.Verbs, given: Any) -> None:
    with pytest.raises(TypeError, match="arguments"):
        verbs.recv(*given)
