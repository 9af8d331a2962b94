"""Stage: demo. The parent process: starts the two others, breaks rails between them, and judges.

Called by `torch_tent.demo.run` on the main thread. What always holds: every turn of the loop ends
after a tick, a child that fails or falls silent ends the run, and no child outlives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from torch_tent.demo import decode, prefill
from torch_tent.demo.children import Child, ended, wait_for_any
from torch_tent.demo.decode import Decoded
from torch_tent.demo.faults import AT_SHARE, Injector, planned
from torch_tent.demo.model import Generated, build, chunks, collect, dense_cache, generate
from torch_tent.demo.model import prefill as compute
from torch_tent.demo.plan import PATIENCE_S, THREADS, Plan, hosts, note_of
from torch_tent.demo.prefill import Prefilled
from torch_tent.demo.progress import Stage
from torch_tent.demo.rails import Relays
from torch_tent.demo.story import Fault, Slice, Story, Verdict, Write
from torch_tent.ticket import Ticket

TICK_S = 0.01
# All rails together: the transfer should take about as long as the prefill, so that the fault
# finds both under way, on a slow machine and on a fast one.
SPEED_BYTES_PER_S = 15e6


@dataclass
class Told:
    """What the children and the relays have told so far."""

    ticket: bytes = b""
    table: Sequence[int] = ()
    prefill_ready: bool = False
    prefilled: Prefilled | None = None
    decoded: Decoded | None = None


def perform(plan: Plan, fault: str, stage: Stage) -> Story:
    """One run, to the end. Raises ChildFailure when one of the processes fails."""
    breaks = planned(fault, plan.rails)
    told = Told()
    children: list[Child] = []
    with ended(children):
        stage.say("starting the prefill and the decode process")
        children.append(Child("decode", decode.work, plan))
        children.append(Child("prefill", prefill.work, plan))
        hear = Hearing(plan, stage, told)
        while not (told.ticket and told.prefill_ready):
            hear.turn(children)
        addresses = [(a.host, a.port) for a in Ticket.decode(told.ticket).card.addresses]
        speed = SPEED_BYTES_PER_S / plan.rails
        with Relays(hosts("relay", plan.rails), addresses, speed) as relays:
            children[1].tell("open", (through(told.ticket, relays), told.table))
            children[0].tell("began")
            injector = Injector(
                relays, breaks, AT_SHARE * cache_bytes(plan), lambda text: stage.say(text, "red")
            )
            while told.prefilled is None or told.decoded is None:
                hear.turn(children)
                injector.step(sum(relays.total(rail) for rail in range(plan.rails)))
            crossed = [relays.moved(rail) for rail in range(plan.rails)]
            for child in children:
                child.tell("end")
            for child in children:
                child.end()
    stage.say("both processes have ended; one process does the same alone")
    judged = verdict(told.decoded, told.prefilled, alone(plan, stage))
    return story(plan, speed, told.prefilled, told.decoded, crossed, injector.record, judged)


class Hearing:
    """Takes what the children say to where it belongs, and to the screen."""

    def __init__(self, plan: Plan, stage: Stage, told: Told) -> None:
        self._told = told
        self._stage = stage
        self._computed = stage.bar("prefill: cache computed", cache_bytes(plan))
        self._landed = stage.bar("decode: cache landed", cache_bytes(plan))
        self._tokens = stage.bar("decode: tokens generated", plan.shape.generated)

    def turn(self, children: Sequence[Child]) -> None:
        """Hears what has been said; waits a tick at most."""
        wait_for_any(children, TICK_S)
        for child in children:
            for kind, content in child.messages():
                self._hear(child.name, kind, content)
            child.check_patience(PATIENCE_S)

    def _hear(self, name: str, kind: str, content: Any) -> None:
        told = self._told
        match name, kind:
            case "decode", "ready":
                told.ticket, told.table = content
            case "prefill", "ready":
                told.prefill_ready = True
            case "prefill", "began":
                self._stage.say("the prefill begins")
            case _, "computed":
                self._computed.advance(content)
            case _, "landed":
                self._landed.advance(content)
            case _, "token":
                self._tokens.advance(1)
            case "prefill", "done":
                told.prefilled = content
            case "decode", "done":
                told.decoded = content


def cache_bytes(plan: Plan) -> int:
    """The prompt's cache: all of its tokens but the last, in whole blocks."""
    shape = plan.shape
    return shape.blocks(len(plan.prompt) - 1) * shape.block_tokens * shape.token_bytes


def through(ticket: bytes, relays: Relays) -> bytes:
    """The ticket as the relays would issue it: each address is replaced by its rail's relay."""
    found = Ticket.decode(ticket)
    addresses = tuple(
        msgspec.structs.replace(address, host=host, port=port)
        for address, (host, port) in zip(found.card.addresses, relays.addresses, strict=True)
    )
    card = msgspec.structs.replace(found.card, addresses=addresses)
    return msgspec.structs.replace(found, card=card).encode()


def alone(plan: Plan, stage: Stage) -> Generated:
    """What one process generates that does both, with the dense cache of transformers."""
    torch.set_num_threads(THREADS)
    shape, prompt = plan.shape, plan.prompt
    model, cache = build(shape), dense_cache()
    bar = stage.bar("one process: both", len(chunks(len(prompt), shape)) + shape.generated)
    for _ in compute(model, prompt, shape, cache):
        bar.advance(1)
    steps = []
    for step in generate(model, prompt[-1], shape.generated, cache):
        steps.append(step)
        bar.advance(1)
    return collect(steps)


def verdict(decoded: Decoded, prefilled: Prefilled, alone: Generated) -> Verdict:
    """Compares token by token, and the caches by their digests."""
    same = 0
    for ours, theirs in zip(decoded.tokens, alone.tokens, strict=True):
        if ours != theirs:
            break
        same += 1
    difference = (torch.tensor(decoded.logits) - alone.logits).abs().max()
    return Verdict(
        tokens_equal=list(decoded.tokens) == list(alone.tokens),
        tokens=len(alone.tokens),
        tokens_same=same,
        cache_equal=decoded.digest == prefilled.digest,
        logits_difference=float(difference),
    )


def story(
    plan: Plan,
    speed: float,
    prefilled: Prefilled,
    decoded: Decoded,
    crossed: Sequence[Sequence[tuple[int, int]]],
    faults: Sequence[Fault],
    judged: Verdict,
) -> Story:
    """Everything that was told, on one clock."""
    relays = hosts("relay", plan.rails)
    slices = [
        Slice(transfer, relays.index(host), offset, size, posted_ns, ended_ns, acked)
        for transfer, _, rail, offset, size, posted_ns, ended_ns, acked in prefilled.trace
        for host in relays
        if host in rail.replace(">", " ").split()
    ]
    writes = [
        Write(
            one.chunk,
            one.layer,
            one.bytes,
            one.began_ns,
            one.ended_ns,
            decoded.landed_ns[note_of(one.chunk, one.layer)],
        )
        for one in prefilled.sent
    ]
    return Story(
        prompt_tokens=len(plan.prompt),
        rails=plan.rails,
        rail_bytes_per_s=speed,
        began_ns=prefilled.began_ns,
        prefilled_ns=prefilled.prefilled_ns,
        writes=writes,
        slices=slices,
        crossed=crossed,
        faults=faults,
        retries=sum(not one.acked for one in slices),
        fences=prefilled.fences,
        verdict=judged,
        tokens_ns=decoded.tokens_ns,
    )
