"""Stage: tests, fuzzing. Tickets and handshake messages, which Python reads: values that cannot be,
in envelopes that are right. An input that is answered in a new way is mutated further.

Called by the command and by the regression test, on their own thread. What always holds: an input
is refused with a TicketError, or gives a value that survives the journey and lies in its bounds.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.test_ticket import ticket
from torch_tent import _engine, conversation, envelope, handshake
from torch_tent.errors import TicketError
from torch_tent.segment import dtype_named
from torch_tent.tensors import grid
from torch_tent.ticket import Ticket

NUMBERS = [0, 1, 2, 64, 255, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31), -(2**63)]
VALUES: list[Any] = [*NUMBERS, None, True, b"", b"\0" * 16, "", "x" * 300, "127.0.0.1", "::1%lo"]
VALUES += ["cpu", "float32", "read", "shm", [], [1], [[]], {}, 1.5, float("nan")]
_steps = msgspec.msgpack.Decoder(conversation.Step)


def try_ticket(body: bytes) -> str:
    """How a ticket with this body is answered. Raises whatever should not be raised."""
    try:
        found = Ticket.decode(envelope.wrap(b"T", msgspec.Raw(body)))  # type: ignore[arg-type]
    except TicketError as error:
        return answer(error)
    assert Ticket.decode(found.encode()) == found
    for tensor in found.tensors:
        low, high = tensor.extent()
        assert 0 <= low <= high <= found.planes_bytes[tensor.plane]
        try:
            dtype_named(tensor)
            size, dims = grid(tensor.shape, tensor.strides_bytes, tensor.item_bytes)
            part = (tensor.offset_bytes, tensor.plane, size, dims, None)
            _engine.Layout([part] if size else [])
        except (TicketError, ValueError) as error:
            return answer(error)
    return f"good: {len(found.tensors)} tensors, {found.block_dim}"


def try_step(body: bytes) -> str:
    """The same for a message of the handshake."""
    try:
        data = envelope.wrap(b"H", msgspec.Raw(body))  # type: ignore[arg-type]
        found = envelope.unwrap(b"H", data, _steps)
        if isinstance(found, conversation.Hello):
            handshake._check(found)
    except (TicketError, conversation.Stopped) as error:
        return answer(error)
    return f"good: {type(found).__name__}"


def answer(error: Exception) -> str:
    """What makes two answers alike: their words, without numbers."""
    return re.sub(r"\d+|'.*'", "#", str(error))[:100]


def seeds() -> dict[str, list[bytes]]:
    """Sound bodies to begin with."""
    blocks = ticket(block_dim=0, blocks=4, per_layer=2)
    hello = conversation.Hello(
        card=ticket().card, expected=bytes(16), nonce=bytes(32), link=7, kind="tcp",
        source="127.0.0.1", target="127.0.0.1", replaces=0, insist=False, session=bytes(8),
        peer_session=b"",
    )  # fmt: skip
    steps: list[Any] = [
        hello,
        conversation.Challenge(bytes(32), bytes(16)),
        conversation.Proof(bytes(32)),
        conversation.Welcome(bytes(32), bytes(8), ""),
        conversation.Attach(),
        conversation.Ready(),
    ]
    encode = msgspec.msgpack.encode
    return {"ticket": [encode(ticket()), encode(blocks)], "step": [encode(s) for s in steps]}


def mutated(body: bytes, chance: random.Random) -> bytes:
    """The body with one to four changes, of its values or of its bytes."""
    for _ in range(chance.randint(1, 4)):
        try:
            tree = msgspec.msgpack.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            tree = None
        if tree is None or chance.random() < 0.2:
            body = changed_bytes(body, chance)
        else:
            body = msgspec.msgpack.encode(changed_value(tree, chance))
    return body


def changed_bytes(body: bytes, chance: random.Random) -> bytes:
    data = bytearray(body or b"\0")
    at = chance.randrange(len(data))
    kind = chance.randrange(3)
    if kind == 0:
        data[at] = chance.randrange(256)
    elif kind == 1:
        del data[at:]
    else:
        data[at:at] = chance.randbytes(chance.randint(1, 4))
    return bytes(data)


def changed_value(tree: Any, chance: random.Random) -> Any:
    if not isinstance(tree, list) or not tree or chance.random() < 0.05:
        return chance.choice(VALUES)
    tree = list(tree)
    at = chance.randrange(len(tree))
    kind = chance.random()
    if kind < 0.1:
        del tree[at]
    elif kind < 0.2:
        tree.insert(at, tree[chance.randrange(len(tree))])
    elif isinstance(tree[at], int) and kind < 0.4:
        tree[at] = max(-(2**63), min(2**64 - 1, tree[at] + chance.choice([-1, 1, 4, -4])))
    else:
        tree[at] = changed_value(tree[at], chance)
    return tree


def fuzz(seconds: float, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Goes on for so long; yields (kind, answer, body) for each new answer.

    Raises AssertionError with the body where an input is answered with another error.
    """
    chance = random.Random(seed)
    tries = {"ticket": try_ticket, "step": try_step}
    pools = seeds()
    known: set[tuple[str, str]] = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        kind = chance.choice(list(tries))
        body = mutated(chance.choice(pools[kind]), chance)
        try:
            said = tries[kind](body)
        except Exception as error:
            raise AssertionError(f"{kind} {body.hex()} raises {error!r}") from error
        if (kind, said) not in known:
            known.add((kind, said))
            pools[kind].append(body)
            yield kind, said, body
