"""Stage: tests. A yield that costs a time slice is not tried again soon, and later and later."""

from __future__ import annotations

from typing import Any

import pytest

from tests.native_modules import native_module

US, MS = 1_000, 1_000_000
SLICE = 3 * MS


@pytest.fixture(scope="module")
def crowd_class() -> Any:
    return native_module("crowd", []).Crowd


def length(crowd: Any, began: int) -> int:
    """How long nobody yields after a yield that cost a slice, in milliseconds."""
    crowd.learn(began, began + SLICE)
    over = began + SLICE
    found = 0
    while crowd.here(over + found * MS):
        found += 1
    return found


def test_yields_that_cost_nothing_go_on(crowd_class: Any) -> None:
    crowd = crowd_class()
    for now in range(0, 100 * MS, 10 * US):
        assert not crowd.here(now)
        crowd.learn(now, now + 5 * US)


def test_one_that_costs_a_slice_is_not_tried_again_for_longer_and_longer(crowd_class: Any) -> None:
    crowd, now, found = crowd_class(), 0, []
    for _ in range(7):
        found.append(length(crowd, now))
        now += SLICE + found[-1] * MS
    assert found == [5, 10, 20, 40, 80, 80, 80]


def test_when_the_others_have_gone_it_begins_anew(crowd_class: Any) -> None:
    crowd, now = crowd_class(), 0
    for _ in range(3):
        now += SLICE + length(crowd, now) * MS
    for _ in range(100):  # Forty milliseconds of yields that cost nothing are needed, not one.
        crowd.learn(now, now + US)
        now += MS
    assert length(crowd, now) == 5
    assert length(crowd, now + SLICE + 5 * MS) == 10
