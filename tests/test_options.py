"""Tests of torch_tent.options: what cannot be met is an error at the call."""

from __future__ import annotations

from typing import Any

import pytest

import torch_tent as tent
from torch_tent import options

ALL = ("shm", "cma", "tcp")


def test_options_become_what_the_engine_knows() -> None:
    assert options.for_engine("foreground", None, None, None, ALL) is options.NONE
    assert options.NONE == {}
    assert options.for_engine("background", 2, 0.5, "shm", ALL) == {
        "priority": 1,
        "timeout": 2.0,
        "deadline": 0.5,
        "rails": 0b11,
    }
    assert options.for_engine("foreground", None, None, "tcp", ALL)["rails"] == 0b100


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"priority": "urgent"}, ValueError, "'urgent'.*'foreground' or 'background'"),
        ({"timeout": -1}, ValueError, "timeout is -1"),
        ({"timeout": float("nan")}, ValueError, "timeout is nan"),
        ({"deadline": float("inf")}, ValueError, "deadline is inf"),
        ({"deadline": "soon"}, TypeError, "deadline is 'soon'"),
        ({"timeout": True}, TypeError, "timeout is True"),
        ({"require": "ib"}, ValueError, "'ib'.*'rdma', 'nvlink'"),
        ({"require": "rdma", "transports": ("tcp",)}, tent.TransferError, "TENT_TRANSPORTS"),
        ({"require": "nvlink"}, tent.TransferError, "add cuda_ipc to TENT_TRANSPORTS"),
        ({"require": "shm", "transports": ("tcp",)}, tent.TransferError, "transports tcp alone"),
        ({"require": "tcp", "transports": ("shm",)}, tent.TransferError, "TENT_TRANSPORTS"),
    ],
)
def test_bad_options_are_named(changed: dict[str, Any], error: Any, message: str) -> None:
    given: dict[str, Any] = {
        "priority": "foreground",
        "timeout": None,
        "deadline": None,
        "require": None,
        "transports": ALL,
    }
    with pytest.raises(error, match=message):
        options.for_engine(**(given | changed))
