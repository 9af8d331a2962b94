"""Stage: demo. The parent process: starts the others, breaks rails between them, and judges.

Called by `torch_tent.demo.run` on the main thread. What always holds: every turn of the loop ends
after a tick, a child that fails or falls silent ends the run, and no child outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from torch_tent.demo.children import Child, Line, ended, wait_for_any
from torch_tent.demo.faults import AT_SHARE, Injector, planned
from torch_tent.demo.plan import PATIENCE_S, Plan, hosts, note_of
from torch_tent.demo.progress import Bar, Stage
from torch_tent.demo.prompt import chunks
from torch_tent.demo.rails import Relays
from torch_tent.demo.story import Fault, Slice, Story, Verdict, Write
from torch_tent.demo.told import Alone, Decoded, Prefilled
from torch_tent.ticket import Ticket

TICK_S = 0.01
# All rails together: the transfer should take somewhat longer than the prefill, so that a fault
# finds both under way and costs what it costs.
SPEED_BYTES_PER_S = 12e6


@dataclass(frozen=True)
class Moved:
    """What came of the two processes and the rails between them."""

    prefilled: Prefilled
    decoded: Decoded
    crossed: Sequence[Sequence[tuple[int, int]]]
    faults: Sequence[Fault]


def perform(plan: Plan, fault: str, stage: Stage) -> Story:
    """One run, to the end. Raises ChildFailure when one of the processes fails."""
    breaks = planned(fault, plan.rails)
    children: list[Child] = []
    with ended(children):
        stage.say("starting the prefill and the decode process")
        decode, prefill = Child("decode", _decode, plan), Child("prefill", _prefill, plan)
        children += [decode, prefill]
        hearing = Hearing(children, stage, bars(plan, stage))
        hearing.until(lambda heard: {("decode", "ready"), ("prefill", "ready")} <= heard.keys())
        ticket, table = hearing.heard["decode", "ready"]
        addresses = [(each.host, each.port) for each in Ticket.decode(ticket).card.addresses]
        with Relays(hosts("relay", plan.rails), addresses, speed(plan)) as relays:
            injector = Injector(
                relays, breaks, AT_SHARE * cache_bytes(plan), lambda text: stage.say(text, "red")
            )
            prefill.tell("open", (through(ticket, relays), table))
            decode.tell("began")
            hearing.until(
                lambda heard: {("decode", "done"), ("prefill", "done")} <= heard.keys(),
                lambda: injector.step(sum(relays.total(rail) for rail in range(plan.rails))),
            )
            for child in children:
                child.tell("end")
                child.end()
            crossed = [relays.moved(rail) for rail in range(plan.rails)]
        stage.say("both processes have ended; now one process does the same alone")
        children.append(Child("single", _alone, plan))
        checking = Hearing(children[-1:], stage, hearing.bars)
        checking.until(lambda heard: ("single", "done") in heard)
    prefilled, decoded = hearing.heard["prefill", "done"], hearing.heard["decode", "done"]
    moved = Moved(prefilled, decoded, crossed, injector.record)
    return story(plan, moved, verdict(moved, checking.heard["single", "done"]))


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


Heard = dict[tuple[str, str], Any]


class Hearing:
    """Hears what children say: the last of each kind is kept, and steps move a bar."""

    def __init__(
        self, children: Sequence[Child], stage: Stage, bars: dict[tuple[str, str], Bar]
    ) -> None:
        self._children = children
        self._stage = stage
        self.bars = bars
        self.heard: Heard = {}

    def until(
        self, done: Callable[[Heard], bool], each_turn: Callable[[], None] = lambda: None
    ) -> None:
        """Listens until `done` of what was heard. Raises ChildFailure, see Child."""
        while not done(self.heard):
            wait_for_any(self._children, TICK_S)
            each_turn()
            for child in self._children:
                for kind, content in child.messages():
                    self.heard[child.name, kind] = content
                    self._show(child.name, kind, content)
                child.check_patience(PATIENCE_S)

    def _show(self, name: str, kind: str, content: Any) -> None:
        bar = self.bars.get((name, kind))
        if bar is not None:
            bar.advance(1 if kind == "token" else content)
        elif kind == "began":
            self._stage.say("the prefill begins")


def bars(plan: Plan, stage: Stage) -> dict[tuple[str, str], Bar]:
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


def through(ticket: bytes, relays: Relays) -> bytes:
    """The ticket with each address replaced by that of the relay before it."""
    found = Ticket.decode(ticket)
    addresses = tuple(
        msgspec.structs.replace(address, host=host, port=port)
        for address, (host, port) in zip(found.card.addresses, relays.addresses, strict=True)
    )
    card = msgspec.structs.replace(found.card, addresses=addresses)
    return msgspec.structs.replace(found, card=card).encode()


def verdict(moved: Moved, alone: Alone) -> Verdict:
    """Compares token by token, and the two caches by their digests."""
    ours, theirs = list(moved.decoded.tokens), list(alone.tokens)
    same = next(
        (n for n, pair in enumerate(zip(ours, theirs, strict=True)) if len({*pair}) > 1), len(ours)
    )
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
    rails = {host: rail for rail, host in enumerate(hosts("relay", plan.rails))}
    slices = [
        Slice(transfer, rails[name.rpartition(">")[2]], offset, size, posted, ended_ns, acked)
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
