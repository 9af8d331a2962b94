"""Stage: tests. When what came over a link is acknowledged: at once where somebody waits for it,
several slices together while more of them wait, and nothing later than it may be.
"""

from __future__ import annotations

import pytest

from torch_tent._simulator import LinkEnd

MS = 1_000_000
ACK_DELAY = 4 * MS


def place(link: LinkEnd, sequence: int, now: int = 0) -> None:
    link.places(sequence)
    assert link.placed(sequence, now)


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_waited_for_is_acknowledged_at_once(behind: bool) -> None:
    link = LinkEnd()
    assert not link.must_ack(0, behind)
    link.took(False, 0)
    assert link.must_ack(0, behind)
    assert link.ack() == 1
    assert not link.must_ack(0, behind)


def test_a_slice_is_acknowledged_at_once_where_nothing_follows() -> None:
    link = LinkEnd()
    link.places(1)
    assert not link.must_ack(0, behind=False)
    assert link.placed(1, 0)
    assert link.must_ack(0, behind=False)


def test_four_slices_go_together_while_more_wait() -> None:
    link = LinkEnd()
    for round_begin in (0, 4, 8):
        for sequence in range(round_begin + 1, round_begin + 4):
            place(link, sequence)
            assert not link.must_ack(0, behind=True)
        place(link, round_begin + 4)
        assert link.must_ack(0, behind=True)
        assert link.ack() == round_begin + 4


def test_the_rest_is_acknowledged_when_nothing_waits_any_more() -> None:
    link = LinkEnd()
    place(link, 1)
    assert not link.must_ack(1, behind=True)
    assert link.must_ack(1, behind=False)


def test_no_slice_waits_for_company_longer_than_it_may() -> None:
    link = LinkEnd()
    place(link, 1, now=10)
    place(link, 2, now=ACK_DELAY)
    assert link.ack_due() == 10 + ACK_DELAY
    assert not link.must_ack(9 + ACK_DELAY, behind=True)
    assert link.must_ack(10 + ACK_DELAY, behind=True)
    assert link.ack() == 2
    place(link, 3, now=2 * ACK_DELAY)  # counted from here on
    assert link.ack_due() == 3 * ACK_DELAY


def test_a_small_message_behind_slices_is_not_held_back_with_them() -> None:
    link = LinkEnd()
    place(link, 1)
    link.took(True, 0)  # nobody waits for this one
    assert not link.must_ack(0, behind=True)
    link.took(False, 0)
    assert link.must_ack(0, behind=True)
    assert link.ack() == 3


def test_only_what_lies_before_a_slice_on_its_way_is_acknowledged() -> None:
    link = LinkEnd()
    link.places(1)
    link.places(2)
    link.took(False, 0)
    assert not link.must_ack(0, behind=False)
    assert link.placed(1, 0)
    assert link.ack() == 1
    assert not link.placed(3, 0)
    assert link.placed(2, 0)
    assert link.ack() == 3


def test_a_slice_that_nobody_waits_for_is_acknowledged_with_the_next_one() -> None:
    link = LinkEnd()
    for sequence in (1, 2, 3):
        link.places(sequence)
        assert link.placed(sequence, 7, ack_later=True)
        assert not link.must_ack(7, behind=False)
    assert link.ack_due() == 7 + ACK_DELAY
    place(link, 4, 8)
    assert link.must_ack(8, behind=False)
    assert link.ack() == 4


def test_the_last_slice_is_acknowledged_in_time_though_its_sender_does_not_wait() -> None:
    link = LinkEnd()
    link.places(1)
    assert link.placed(1, 7, ack_later=True)
    assert not link.must_ack(6 + ACK_DELAY, behind=False)
    assert link.must_ack(7 + ACK_DELAY, behind=False)
