"""Tests of torch_tent/errors.py: the right class for each code, with all facts."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from torch_tent import errors

KINDS = {
    1: errors.TransferError,
    2: errors.PeerLostError,
    3: errors.AccessError,
    4: errors.TransferTimeout,
    5: errors.TransferCancelled,
    6: errors.TransferError,
    7: errors.TransferError,
}


@pytest.mark.parametrize(("code", "kind"), KINDS.items())
def test_each_code_has_its_error_with_all_facts(
    code: int, kind: type[errors.TransferError]
) -> None:
    error = errors.from_status(code, "it broke", "tcp a>b", "host:7", "no cma: refused")
    assert type(error) is kind
    assert (error.peer, error.rail, error.path) == ("host:7", "tcp a>b", "no cma: refused")
    assert error.cause == "it broke"
    for fact in ("it broke", "tcp a>b", "host:7", "no cma: refused"):
        assert fact in str(error)


@pytest.mark.parametrize("code", KINDS)
def test_errors_survive_pickling(code: int) -> None:
    error = errors.from_status(code, "it broke", "tcp a>b", "host:7", "direct")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_an_error_without_text_still_says_what_happened() -> None:
    assert "timeout passed" in str(errors.from_status(4, ""))
    assert "code 99" in str(errors.from_status(99, ""))


def test_success_is_no_error() -> None:
    with pytest.raises(ValueError, match="success"):
        errors.from_status(0, "")


def test_a_timeout_is_caught_as_pythons_own() -> None:
    with pytest.raises(TimeoutError):
        raise errors.from_status(4, "")


def test_every_code_of_the_data_plane_is_known() -> None:
    header = Path(__file__).parent.parent / "csrc/core/types.h"
    body = re.search(r"enum class Code[^{]*{(.*?)};", header.read_text(), re.DOTALL)
    assert body is not None
    codes = {int(number) for number in re.findall(r"= (\d+),", body.group(1))}
    assert codes == {0, *KINDS}
