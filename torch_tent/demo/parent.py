"""Stage: demo. The parent process: starts the others, breaks rails between them, and judges.

Called by `torch_tent.demo.run` on the main thread. What always holds: every turn of the loop ends
after a tick, a child that fails or falls silent ends the run, and no child outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch_tent.demo.children import Child, Line, ended, wait_for_any
from torch_tent.demo.faults import AT_SHARE, Injector, planned
from torch_tent.demo.plan import PATIENCE_S, Plan, hosts, note_of, rail_of
from torch_tent.demo.progress import Bar, Stage
from torch_tent.demo.prompt import chunks
from torch_tent.demo.rails import Relays
from torch_tent.demo.relay import Side
from torch_tent.demo.story import Fault, Slice, Story, Verdict, Write
from torch_tent.demo.told import Alone, Decoded, Prefilled

TICK_S = 0.01
# All rails together: the transfer should take somewhat longer than the prefill, so that a fault
# finds both under way and costs what it costs.
SPEED_BYTES_PER_S = 12e6
NEAR: Side = "near"
FAR: Side = "far"

Said = tuple[str, str]  # who, what
Bars = dict[Said, Bar]


@dataclass(frozen=True)
class Moved:
    """What came of the two processes and the rails between them."""

    prefilled: Prefilled
    decoded: Decoded
    crossed: Sequence[Sequence[tuple[int, int]]]
    faults: Sequence[Fault]


def perform(plan: Plan, fault: str, stage: Stage) -> Story:
    """One run, to the end. Raises ChildFailure when one of the processes fails."""
    bars = make_bars(plan, stage)
    moved = move(plan, fault, stage, bars)
    stage.say("both processes have ended; now one process does the same alone")
    children: list[Child] = []
    with ended(children):
        children.append(Child("single", _alone, plan))
        hearing = Hearing(children, stage, bars)
        hearing.until(("single", "done"))
    return story(plan, moved, verdict(moved, hearing.heard["single", "done"]))


def move(plan: Plan, fault: str, stage: Stage, bars: Bars) -> Moved:
    """The prefill and the decode process, and the rails between them."""
    breaks = planned(fault, plan.rails)
    ends = list(zip(hosts("prefill", plan.rails), hosts("decode", plan.rails), strict=True))
    children: list[Child] = []
    with Relays(ends, speed(plan)) as relays, ended(children):
        stage.say("starting the prefill and the decode process")
        decode, prefill = Child("decode", _decode, plan), Child("prefill", _prefill, plan)
        children += [decode, prefill]
        hearing = Hearing(children, stage, bars)
        hearing.until(("decode", "addresses"), ("prefill", "addresses"))
        for child, side in ((prefill, NEAR), (decode, FAR)):
            relays.lead(side, hearing.heard[child.name, "addresses"])
            child.tell("doors", relays.doors(side))
        hearing.until(("decode", "ready"), ("prefill", "ready"))
        prefill.tell("open", hearing.heard["decode", "ready"])
        decode.tell("began")
        injector = Injector(
            relays, breaks, AT_SHARE * cache_bytes(plan), lambda text: stage.say(text, "red")
        )
        hearing.until(
            ("decode", "done"),
            ("prefill", "done"),
            each_turn=lambda: injector.step(sum(relays.total(n) for n in range(plan.rails))),
        )
        for child in children:
            child.tell("end")
        for child in children:
            child.end()
        crossed = [relays.moved(rail) for rail in range(plan.rails)]
    heard = hearing.heard
    return Moved(heard["prefill", "done"], heard["decode", "done"], crossed, injector.record)


def _decode(line: Line, plan: Plan) -> None:
    """In the child: the import belongs there, it takes seconds."""
    from torch_tent.demo import decode

    decode.work(line, plan)


def _prefill(line: Line, plan: Plan) -> None:
    from torch_tent.demo import prefill

    prefill.work(line, plan)


def _alone(line: Line, plan: Plan) -> None:
    from torch_tent.demo import alone

    alone.work(line, plan)


class Hearing:
    """Hears what children say: the last of each kind is kept, and steps move a bar."""

    def __init__(self, children: Sequence[Child], stage: Stage, bars: Bars) -> None:
        self._children = children
        self._stage = stage
        self._bars = bars
        self.heard: dict[Said, Any] = {}

    def until(self, *awaited: Said, each_turn: Callable[[], None] = lambda: None) -> None:
        """Listens until all of this was heard. Raises ChildFailure, see Child."""
        while not self.heard.keys() >= set(awaited):
            wait_for_any(self._children, TICK_S)
            each_turn()
            for child in self._children:
                for kind, content in child.messages():
                    self.heard[child.name, kind] = content
                    self._show(child.name, kind, content)
                child.check_patience(PATIENCE_S)

    def _show(self, name: str, kind: str, content: Any) -> None:
        bar = self._bars.get((name, kind))
        if bar is not None:
            bar.advance(1 if kind == "token" else content)
        elif kind == "began":
            self._stage.say("the prefill begins")


def make_bars(plan: Plan, stage: Stage) -> Bars:
    """What is shown to grow, by who says what."""
    tokens = len(plan.prompt) - 1
    return {
        ("prefill", "computed"): stage.bar("prefill: cache computed", cache_bytes(plan)),
        ("decode", "landed"): stage.bar("decode: cache landed", cache_bytes(plan)),
        ("decode", "token"): stage.bar("decode: generated", plan.shape.generated),
        ("single", "computed"): stage.bar("one process: cache computed", tokens),
        ("single", "token"): stage.bar("one process: generated", plan.shape.generated),
    }


def speed(plan: Plan) -> float:
    """Bytes per second of one rail."""
    return SPEED_BYTES_PER_S / plan.rails


def cache_bytes(plan: Plan) -> int:
    """What is moved: the cache of the prompt's tokens but the last, in whole blocks."""
    last = chunks(len(plan.prompt), plan.shape)[-1].last
    return plan.shape.blocks(last) * plan.shape.block_tokens * plan.shape.token_bytes


def verdict(moved: Moved, alone: Alone) -> Verdict:
    """Compares token by token, and the two caches by their digests."""
    ours, theirs = list(moved.decoded.tokens), list(alone.tokens)
    pairs = enumerate(zip(ours, theirs, strict=True))
    same = next((n for n, (one, other) in pairs if one != other), len(ours))
    difference = np.abs(np.array(moved.decoded.logits) - np.array(alone.logits)).max()
    return Verdict(
        tokens_equal=ours == theirs,
        tokens=len(theirs),
        tokens_same=same,
        cache_equal=moved.decoded.digest == moved.prefilled.digest,
        logits_difference=float(difference),
    )


def story(plan: Plan, moved: Moved, judged: Verdict) -> Story:
    """Everything that was told, on one clock."""
    prefilled, decoded = moved.prefilled, moved.decoded
    slices = [
        Slice(transfer, rail_of(name), offset, size, posted, ended_ns, acked)
        for transfer, _, name, offset, size, posted, ended_ns, acked in prefilled.trace
    ]
    writes = [
        Write(
            chunk=one.chunk,
            layer=one.layer,
            bytes=one.bytes,
            began_ns=one.began_ns,
            ended_ns=one.ended_ns,
            landed_ns=decoded.landed_ns[note_of(one.chunk, one.layer)],
        )
        for one in prefilled.sent
    ]
    return Story(
        prompt_tokens=len(plan.prompt),
        rails=plan.rails,
        rail_bytes_per_s=speed(plan),
        began_ns=prefilled.began_ns,
        prefilled_ns=prefilled.prefilled_ns,
        writes=writes,
        slices=slices,
        crossed=moved.crossed,
        faults=moved.faults,
        retries=sum(not one.acked for one in slices),
        fences=prefilled.fences,
        verdict=judged,
        tokens_ns=decoded.tokens_ns,
    )
