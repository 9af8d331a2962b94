"""Stage: demo. An engine whose peers come through the relays: its card names their doors.

Called by the prefill and the decode process on their main threads. What always holds: whichever
engine connects, and however often, it does so through the rail's relay, where faults happen.
"""

from __future__ import annotations

import msgspec

import torch_tent as tent
from torch_tent.card import Card
from torch_tent.demo.children import Line
from torch_tent.demo.plan import PATIENCE_S, Plan


def engine_behind(line: Line, plan: Plan, process: str) -> tent.Engine:
    """The process's engine. Tells "addresses" (host, port) per rail; hears "doors", likewise."""

    def advertise(card: Card) -> Card:
        line.tell("addresses", [(address.host, address.port) for address in card.addresses])
        doors = line.hear("doors", PATIENCE_S)
        addresses = tuple(
            msgspec.structs.replace(address, host=host, port=port)
            for address, (host, port) in zip(card.addresses, doors, strict=True)
        )
        return msgspec.structs.replace(card, addresses=addresses)

    return tent.Engine(plan.settings(process), name=process, advertise=advertise)
