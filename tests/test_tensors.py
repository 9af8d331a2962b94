"""Tests of torch_tent.tensors: layouts mean what indexing means, and bad memory is named."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pairs import two_engines
from torch_tent import tensors

ALL_DTYPES = sorted(tensors.DTYPE_CODES, key=str)
ERRORS = (TypeError, ValueError)


def bytes_of(
    base: int,
    piece_bytes: int,
    dims: Sequence[tuple[int, int]],
    blocks: Sequence[int] | None = None,
) -> Iterator[int]:
    """The addresses of a part's bytes, in order: what csrc/core/layout.h says, word for word."""
    ranges = [range(count) for count, _ in dims]
    for at in itertools.product(*ranges):
        place = list(at)
        if blocks is not None:
            place[0] = blocks[place[0]]
        start = base + sum(i * step for i, (_, step) in zip(place, dims, strict=True))
        yield from range(start, start + piece_bytes)


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """Random views of int16 tensors whose elements are all different."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    x = torch.arange(int(np.prod(shape, dtype=int)), dtype=torch.int16).reshape(shape)
    for _ in range(draw(st.integers(0, 3))):
        if x.dim() == 0:
            break
        dim = draw(st.integers(0, x.dim() - 1))
        what = draw(st.sampled_from(["transpose", "slice", "select", "expand", "unsqueeze"]))
        if what == "transpose":
            x = x.transpose(dim, draw(st.integers(0, x.dim() - 1)))
        elif what == "slice":
            start = draw(st.integers(0, x.shape[dim]))
            index = [slice(None)] * x.dim()
            index[dim] = slice(start, None, draw(st.integers(1, 3)))
            x = x[tuple(index)]
        elif what == "select" and x.shape[dim] > 0:
            x = x.select(dim, draw(st.integers(0, x.shape[dim] - 1)))
        elif what == "unsqueeze":
            x = x.unsqueeze(dim)
        elif what == "expand" and x.shape[dim] == 1:
            sizes = list(x.shape)
            sizes[dim] = draw(st.integers(1, 3))
            x = x.expand(sizes)
    return x


@given(views())
def test_a_grid_lists_the_bytes_of_the_elements_in_order(x: torch.Tensor) -> None:
    piece_bytes, dims = tensors.grid(x.shape, tensors.steps(x), 2)
    start = x.storage_offset() * 2
    memory = torch.arange(x.untyped_storage().nbytes() // 2, dtype=torch.int16)
    memory = memory.numpy().view(np.uint8)
    found = memory[list(bytes_of(start, piece_bytes, dims))].view(np.int16)
    # Offsets instead of values: the tensor as if its memory counted its own elements.
    offsets = torch.arange(x.untyped_storage().nbytes() // 2, dtype=torch.int16)
    wanted = offsets.as_strided(x.shape, x.stride(), x.storage_offset())
    assert found.tolist() == wanted.flatten().tolist()


@given(views())
def test_a_grid_has_no_more_dims_than_needed(x: torch.Tensor) -> None:
    piece_bytes, dims = tensors.grid(x.shape, tensors.steps(x), 2)
    assert all(count > 1 for count, _ in dims)
    assert not dims or dims[-1][1] != piece_bytes
    assert all(a[1] != b[0] * b[1] for a, b in itertools.pairwise(dims))
    if x.is_contiguous():
        assert dims == []


@given(views())
def test_the_extent_is_the_first_to_the_last_byte(x: torch.Tensor) -> None:
    address, size = tensors.extent(x)
    piece_bytes, dims = tensors.grid(x.shape, tensors.steps(x), 2)
    places = list(bytes_of(x.data_ptr(), piece_bytes, dims))
    assert (address, size) == (x.data_ptr(), max(places) + 1 - min(places) if places else 0)


@given(views())
def test_a_destination_never_has_two_elements_in_one_place(x: torch.Tensor) -> None:
    piece_bytes, dims = tensors.grid(x.shape, tensors.steps(x), 2)
    places = list(bytes_of(0, piece_bytes, dims))
    overlaps = len(places) != len(set(places))
    if overlaps:
        with pytest.raises(ValueError, match="share memory"):
            tensors.check_fillable(x)
    elif x.is_contiguous():
        tensors.check_fillable(x)


@given(views())
def test_layouts_have_the_bytes_of_the_tensor(x: torch.Tensor) -> None:
    assert tensors.source(x)[1].bytes == x.numel() * 2


def test_dtypes_have_numbers_that_depend_on_their_name_alone() -> None:
    assert len(set(tensors.DTYPE_CODES.values())) == len(tensors.DTYPE_CODES) > 30
    assert 0 not in tensors.DTYPE_CODES.values()


def sample(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of any dtype, with random bytes that are values of it."""
    count = int(np.prod(shape)) * dtype.itemsize
    most = 2 if dtype is torch.bool else 256
    return torch.randint(0, most, (count,), dtype=torch.uint8).view(dtype).view(shape)


def same_bytes(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.dtype == y.dtype and torch.equal(
        x.contiguous().view(-1).view(torch.uint8), y.contiguous().view(-1).view(torch.uint8)
    )


def test_every_dtype_arrives() -> None:
    with two_engines() as pair:
        for dtype in ALL_DTYPES:
            x = sample(dtype, (3, 5))
            y = torch.zeros(15 * dtype.itemsize, dtype=torch.uint8).view(dtype).view(3, 5)
            pair.exchange(x, y)
            assert same_bytes(x, y), dtype


def test_strided_tensors_arrive_in_row_major_order() -> None:
    x = torch.arange(6 * 8 * 10.0).reshape(6, 8, 10)
    targets = [torch.zeros(6, 8, 10), torch.zeros(10, 8, 6).permute(2, 1, 0)]
    sources = [x, x.transpose(0, 1), x[::2, 1:7, ::3], x[:, :1].expand(6, 8, 10), x.mT, x[3, 4, 5]]
    with two_engines() as pair:
        for source in sources:
            for target in targets:
                y = target.as_strided((source.numel(),), (1,)) if source.numel() < 480 else target
                y.zero_()
                pair.exchange(source, y)
                assert y.flatten().tolist() == source.flatten().tolist()
        wide = torch.zeros(6, 20)
        pair.exchange(x[0, 0, :6], wide[:, 7])
        assert wide[:, 7].tolist() == x[0, 0, :6].tolist()
        assert int(wide.count_nonzero()) == 5


@pytest.mark.parametrize("shape", [(0,), (), (3, 0, 2), (1, 1)])
def test_tensors_of_no_and_one_element_arrive(shape: tuple[int, ...]) -> None:
    x, y = torch.full(shape, 7.0), torch.zeros(shape)
    with two_engines() as pair:
        sent, received = pair.exchange(x, y)
        assert received.wait() is y
        assert sent.report()["bytes"] == x.numel() * 4
    assert torch.equal(x, y)


def test_conjugated_and_negated_sources_arrive_resolved() -> None:
    x = torch.tensor([1 + 2j, 3 - 4j])
    y, imaginary = torch.zeros(2, dtype=torch.complex64), torch.zeros(2)
    with two_engines() as pair:
        pair.exchange(x.conj(), y)
        pair.exchange(x.conj().imag, imaginary)
    assert y.tolist() == [1 - 2j, 3 + 4j]
    assert imaginary.tolist() == [-2, 4]


class OnlyDlpack:
    """Memory of another library."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_numpy_and_dlpack_share_memory() -> None:
    read_only = np.arange(12, dtype=np.int32).reshape(3, 4)
    read_only.setflags(write=False)
    wanted = read_only[:, ::2].tolist()
    with two_engines() as pair, warnings.catch_warnings():
        warnings.simplefilter("error")
        for y in (np.zeros((3, 2), np.int32), np.zeros((3, 4), np.int32)[:, 1:3]):
            pair.exchange(read_only[:, ::2], y)
            assert y.tolist() == wanted
        z = np.zeros(12, np.int32)
        pair.exchange(OnlyDlpack(np.arange(12, dtype=np.int32)), OnlyDlpack(z))
        assert z.tolist() == list(range(12))
        pair.exchange(np.zeros((0, 3), np.int32)[:0], np.zeros((0, 3), np.int32))


def test_parameters_can_be_sent_and_filled_without_grad() -> None:
    x, y = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(3))
    with two_engines() as pair:
        with torch.no_grad():
            pair.exchange(x, y)
        assert y.tolist() == [1, 1, 1]
        assert y.requires_grad
        with pytest.raises(ValueError, match=r"requires grad.*torch\.no_grad"):
            pair.b.recv(y, 0, group=pair.group_b)


class InCudaMemory:
    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012


class Wrapped(torch.Tensor):
    @staticmethod
    def __new__(cls) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, (3,))

    @classmethod
    def __torch_dispatch__(cls, *args: Any) -> Any:
        raise NotImplementedError


with warnings.catch_warnings():  # Both kinds are on their way out, or in.
    warnings.simplefilter("ignore")
    QUANTIZED = torch._empty_affine_quantized([3], scale=1, zero_point=0, dtype=torch.qint8)
    SPARSE_ROWS = torch.eye(3).to_sparse_csr()

EITHER = [
    (torch.empty(3, device="meta"), "device 'meta', which has no memory"),
    (torch.eye(3).to_sparse(), "layout torch.sparse_coo.*values and indices"),
    (SPARSE_ROWS, "layout torch.sparse_csr"),
    (QUANTIZED, "quantized dtype.*int_repr"),
    (Wrapped(), "Wrapped, which has no memory of its own"),
    (np.arange(5.0)[::-1], "negative strides.*ascontiguousarray"),
    (np.array(["a", "b"]), "NumPy array of dtype <U1"),
    (np.array([1.0], dtype=">f4"), "NumPy array of dtype >f4"),
    (InCudaMemory(), "InCudaMemory.*(no CUDA driver|could not be taken over)"),
    ([1.0, 2.0], "is a list: give a tensor"),
    (None, "is a NoneType: give a tensor"),
]


@pytest.mark.parametrize(("x", "message"), EITHER, ids=lambda value: type(value).__name__)
def test_what_has_no_memory_of_ours_is_named(x: Any, message: str) -> None:
    with pytest.raises(ERRORS, match=f"source.*{message}"):
        tensors.source(x)
    with pytest.raises(ERRORS, match=f"destination.*{message}"):
        tensors.destination(x)
    with pytest.raises(ERRORS, match=message):
        tensors.exported(x, writable=False)


READ_ONLY = np.arange(3)
READ_ONLY.setflags(write=False)
DESTINATIONS = [
    (torch.zeros(1, 3).expand(2, 3), r"share memory.*expand"),
    (torch.zeros(9).as_strided((3, 3), (1, 1)), "share memory"),
    (torch.zeros(2, dtype=torch.complex64).conj(), "conjugated or negated"),
    (torch.zeros(2, dtype=torch.complex64).conj().imag, "conjugated or negated"),
    (torch.zeros(3, requires_grad=True), "requires grad"),
    (READ_ONLY, "read-only"),
]


@pytest.mark.parametrize(("x", "message"), DESTINATIONS)
def test_what_must_not_be_filled_is_named(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tensors.destination(x)
    with pytest.raises(ValueError, match=message):
        tensors.exported(x, writable=True)


@pytest.mark.parametrize("bytes_", [0, 16])
def test_storage_that_was_freed_or_made_smaller(bytes_: int) -> None:
    x = torch.ones(10000)
    odd = x[::2]
    x.untyped_storage().resize_(bytes_)
    for part in (x, odd):
        for take in (tensors.source, tensors.destination, lambda t: tensors.exported(t, False)):
            with pytest.raises(ValueError, match=f"of a storage that has {bytes_}: it was freed"):
                take(part)
