"""The scheduler: who serves which flow. Simulated links of given speeds drain simulated flows."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from torch_tent._simulator import BACKGROUND_SHARE, Scheduler, worth_doubling, worth_taking

FOREGROUND, BACKGROUND = 0, 1
NEVER = 2**63 - 1
ALL_RAILS = 255
KIB = 1 << 10
MS = 1_000_000


def always(link: int, flow: int) -> bool:
    return True


@dataclass
class Rail:
    """A link that needs `base` ns plus bytes / rate for a slice, one after another."""

    link: int
    rate: float
    base: int
    slice_bytes: int
    window: int
    kind: int = 2
    in_flight: int = 0
    free_at: float = 0.0
    sent: int = 0

    def view(self) -> tuple[int, int, float, int, int, int]:
        return (self.link, self.kind, self.rate, self.base, self.in_flight, self.slice_bytes)


class Drain:
    """Serves flows over rails until nothing is left; time passes with the acknowledgements."""

    def __init__(self, rails: list[Rail], flows: dict[int, tuple[int, int, int]]) -> None:
        self.rails, self.now = rails, 0.0
        self.scheduler = Scheduler()
        self.left = {flow: size for flow, (size, _, _) in flows.items()}
        for flow, (size, priority, deadline) in flows.items():
            self.scheduler.add(flow, size, priority, deadline, ALL_RAILS)
        self.acks: list[tuple[float, int, int]] = []
        self.order: list[int] = []  # which flow each slice was of
        self.ended: dict[int, float] = {}
        self.last: Rail | None = None

    def run(self) -> Drain:
        while True:
            self.fill()
            if not self.acks:
                return self
            self.now, at, size = heapq.heappop(self.acks)
            self.rails[at].in_flight -= size

    def fill(self) -> None:
        moved = True
        while moved:
            moved = False
            for at, rail in enumerate(self.rails):
                if rail.in_flight and rail.in_flight + rail.slice_bytes > rail.window:
                    continue
                flow = self.scheduler.next(at, [r.view() for r in self.rails], always)
                if flow:
                    self.serve(at, rail, flow)
                    moved = True

    def serve(self, at: int, rail: Rail, flow: int) -> None:
        size = min(rail.slice_bytes, self.left[flow])
        assert size > 0
        self.left[flow] -= size
        self.scheduler.set_left(flow, self.left[flow])
        rail.in_flight += size
        rail.sent += size
        rail.free_at = max(rail.free_at, self.now) + size / rail.rate
        done = rail.free_at + rail.base
        heapq.heappush(self.acks, (done, at, size))
        self.order.append(flow)
        self.ended[flow] = max(self.ended.get(flow, 0.0), done)
        if self.last is None or done > self.last.free_at + self.last.base:
            self.last = rail


rates = st.sampled_from([0.0125, 0.05, 0.125, 0.5, 1.0, 4.0])


@st.composite
def rails(draw: st.DrawFn, least: int = 1) -> list[Rail]:
    made = []
    for link in range(1, draw(st.integers(least, 5)) + 1):
        rate = draw(rates)
        slice_bytes = draw(st.sampled_from([16, 64, 256])) * KIB
        base = draw(st.integers(0, 300_000))
        window = 4 * slice_bytes + int(2 * rate * base)  # what keeps the rail busy
        made.append(Rail(link, rate, base, slice_bytes, window))
    return made


sizes = st.integers(1, 4 << 20)


@given(rails(), st.lists(sizes, min_size=1, max_size=5), st.data())
def test_every_byte_is_served_once_whatever_the_rails_are(
    used: list[Rail], flow_sizes: list[int], data: st.DataObject
) -> None:
    flows = {
        i + 1: (size, data.draw(st.integers(0, 1)), data.draw(st.sampled_from([NEVER, 5, 10])))
        for i, size in enumerate(flow_sizes)
    }
    drain = Drain(used, flows).run()
    assert all(left == 0 for left in drain.left.values())  # nobody waits for ever
    assert not drain.scheduler.any_left
    assert sum(rail.sent for rail in used) == sum(flow_sizes)


@settings(max_examples=40)
@given(rails(least=2))
def test_no_rail_starves_while_there_is_much_to_do(used: list[Rail]) -> None:
    total = int(sum(rail.rate for rail in used) * 30e6)  # about 30 ms of work for all
    drain = Drain(used, {1: (total, FOREGROUND, NEVER)}).run()
    ideal = total / sum(rail.rate for rail in used)
    for rail in used:
        assert rail.sent > 0.5 * rail.rate * ideal - 4 * rail.slice_bytes
    slack = max(rail.base for rail in used) + max(r.slice_bytes / r.rate for r in used)
    assert drain.ended[1] <= 1.02 * ideal + 2 * slack


@given(rails(least=2), sizes)
def test_the_last_slice_is_never_on_the_slowest_rail(used: list[Rail], size: int) -> None:
    for rail in used:
        rail.slice_bytes, rail.window, rail.base = 16 * KIB, 64 * KIB, 0
    slowest = min(used, key=lambda rail: rail.rate)
    others = [rail for rail in used if rail is not slowest]
    assume(min(rail.rate for rail in others) > slowest.rate)
    drain = Drain(used, {1: (size, FOREGROUND, NEVER)}).run()
    without = [Rail(r.link, r.rate, r.base, r.slice_bytes, r.window) for r in others]
    alone = Drain(without, {1: (size, FOREGROUND, NEVER)}).run()
    # The slowest rail helps or stays away; it never makes the transfer later.
    assert drain.ended[1] <= alone.ended[1] * 1.001
    if len(drain.order) < 20:
        assert drain.last is not slowest or drain.ended[1] <= alone.ended[1]


def test_a_tail_goes_to_the_fast_rail_even_when_the_slow_one_is_idle() -> None:
    fast, slow = (1, 2, 1.0, 10_000, 64 * KIB, 64 * KIB), (2, 2, 0.01, 10_000, 0, 64 * KIB)
    assert worth_taking(0, [fast, slow], 64 * KIB)
    assert not worth_taking(1, [fast, slow], 64 * KIB)  # 6.5 ms against 0.13 ms
    assert worth_taking(1, [fast, slow], 64 << 20)  # there is enough to do for 67 ms


speeds = st.tuples(st.floats(1e-3, 10), st.integers(0, 300_000), st.integers(32, 1 << 20))


# Rails that each waited for another one when each was compared over slices of its own length.
@example([(0.0147, 1060, 2000), (0.86, 82_895, 16_384), (1.97, 29_721, 128)], 570)
@example(
    [(0.0026, 295_234, 4096), (0.577, 293_748, 32), (0.003, 1510, 4096), (0.0104, 0, 16_000)], 3279
)
@given(st.lists(speeds, min_size=1, max_size=5), st.integers(1, 10**8))
def test_one_of_the_rails_always_takes_what_is_left(
    given_speeds: list[tuple[float, int, int]], left: int
) -> None:
    views = [(i + 1, 2, rate, base, 0, most) for i, (rate, base, most) in enumerate(given_speeds)]
    assert any(worth_taking(at, views, left) for at in range(len(views)))


@given(
    rails(), st.lists(st.tuples(sizes, st.sampled_from([5, 10, 20, NEVER])), min_size=2, max_size=5)
)
def test_the_earliest_deadline_is_served_first(used: list[Rail], given_flows: list) -> None:
    flows = {i + 1: (size, FOREGROUND, when) for i, (size, when) in enumerate(given_flows)}
    drain = Drain(used[:1], flows).run()  # on one rail nothing stands against the plain order
    deadlines = [flows[flow][2] for flow in drain.order]
    assert deadlines == sorted(deadlines)


@given(rails(), st.integers(2, 5))
def test_equals_are_served_in_turns(used: list[Rail], count: int) -> None:
    size = 50 * used[0].slice_bytes
    flows = dict.fromkeys(range(1, count + 1), (size, FOREGROUND, NEVER))
    order = Drain(used[:1], flows).run().order
    for begin in range(0, len(order) - count, count):
        assert sorted(order[begin : begin + count]) == list(flows)


@given(rails(), st.integers(1, 3))
def test_foreground_goes_first_but_background_keeps_its_floor(
    used: list[Rail], urgent: int
) -> None:
    size = 200 * used[0].slice_bytes
    flows = dict.fromkeys(range(1, urgent + 1), (size, FOREGROUND, NEVER))
    flows[9] = (size, BACKGROUND, NEVER)
    order = Drain(used[:1], flows).run().order
    while_urgent = order[: max(i for i, flow in enumerate(order) if flow != 9) + 1]
    gaps = [
        len(list(run))
        for is_urgent, run in itertools.groupby(f != 9 for f in while_urgent)
        if is_urgent
    ]
    assert max(gaps) <= BACKGROUND_SHARE  # it does not starve
    share = while_urgent.count(9) / len(while_urgent)
    assert share <= 1.5 / BACKGROUND_SHARE  # and takes no more than its floor


def test_a_flow_waits_for_the_rails_that_it_allows() -> None:
    scheduler = Scheduler()
    scheduler.add(1, 1000, FOREGROUND, NEVER, 1 << 0)
    tcp, shm = (7, 2, 1.0, 0, 0, 4096), (8, 0, 1.0, 0, 0, 4096)
    assert scheduler.next(0, [tcp, shm], always) == 0
    assert scheduler.next(1, [tcp, shm], always) == 1
    assert scheduler.next(1, [tcp, shm], lambda link, flow: link != 8) == 0


def test_a_flow_that_was_removed_is_not_served() -> None:
    scheduler = Scheduler()
    scheduler.add(1, 1000, FOREGROUND, NEVER, ALL_RAILS)
    scheduler.add(2, 1000, FOREGROUND, NEVER, ALL_RAILS)
    scheduler.remove(1)
    scheduler.remove(1)
    link = (7, 2, 1.0, 0, 0, 4096)
    assert [scheduler.next(0, [link], always) for _ in range(3)] == [2, 2, 2]
    scheduler.set_left(2, 0)
    assert not scheduler.any_left
    assert scheduler.next(0, [link], always) == 0


def test_the_background_takes_little_at_a_time_while_something_urgent_was_there_lately() -> None:
    scheduler, least = Scheduler(), 16 * KIB
    link = (7, 2, 1.0, 0, 0, 512 * KIB)  # half a millisecond of its work
    assert scheduler.slice_bytes(link, BACKGROUND, least, 5 * MS) == 512 * KIB
    scheduler.add(1, 1000, FOREGROUND, NEVER, ALL_RAILS)
    assert scheduler.next(0, [link], always, 5 * MS) == 1
    scheduler.remove(1)
    scheduler.add(2, 64 << 20, BACKGROUND, NEVER, ALL_RAILS)
    assert scheduler.next(0, [link], always, 6 * MS) == 2  # it does not stop
    assert scheduler.slice_bytes(link, FOREGROUND, least, 6 * MS) == 512 * KIB
    little = scheduler.slice_bytes(link, BACKGROUND, least, 6 * MS)
    assert least <= little <= 128 * KIB
    slow = (7, 2, 0.01, 0, 0, least)
    assert scheduler.slice_bytes(slow, BACKGROUND, least, 6 * MS) == least
    assert scheduler.slice_bytes(link, BACKGROUND, least, 500 * MS) == 512 * KIB


def test_the_background_queues_less_while_something_urgent_was_there_lately() -> None:
    def takes(in_flight: int, urgent: bool) -> bool:
        scheduler = Scheduler()
        link = (7, 2, 1.0, 10_000, in_flight, 64 * KIB)
        scheduler.add(1, 1000, FOREGROUND, NEVER, ALL_RAILS)
        assert not urgent or scheduler.next(0, [link], always, 0) == 1
        scheduler.remove(1)
        scheduler.add(2, 64 << 20, BACKGROUND, NEVER, ALL_RAILS)
        return scheduler.next(0, [link], always, 1 * MS) == 2

    assert takes(200_000, urgent=False)
    assert not takes(300_000, urgent=False)
    assert takes(100_000, urgent=True)
    assert not takes(200_000, urgent=True)


def test_a_late_slice_is_doubled_where_it_comes_much_sooner() -> None:
    idle, slow = (1, 2, 0.125, 100_000, 0, 16 * KIB), (2, 2, 0.0125, 100_000, 64 * KIB, 16 * KIB)
    assert worth_doubling(idle, 16 * KIB, slow, 64 * KIB)  # 0.2 ms against 5.3 ms
    assert not worth_doubling(slow, 16 * KIB, idle, 64 * KIB)
    assert not worth_doubling(idle, 16 * KIB, idle, 32 * KIB)  # nearly as soon by itself
    busy = (1, 2, 0.125, 100_000, 512 * KIB, 16 * KIB)
    assert not worth_doubling(busy, 16 * KIB, slow, 64 * KIB)


@given(rails(least=2), sizes, sizes)
def test_two_rails_never_double_for_each_other(used: list[Rail], a: int, b: int) -> None:
    first, second = used[0], used[1]
    first.in_flight, second.in_flight = a, b
    size = 16 * KIB
    to_first = worth_doubling(first.view(), size, second.view(), second.in_flight)
    to_second = worth_doubling(second.view(), size, first.view(), first.in_flight)
    assert not (to_first and to_second)
