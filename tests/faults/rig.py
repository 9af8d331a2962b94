"""Two engines in this process with relays between them, one per rail: real sockets, real faults.

`near` opens tickets of `far` as the relays would issue them, so that every byte passes a relay.
"""

from __future__ import annotations

import itertools
from typing import Self

import msgspec
import torch

import torch_tent as tent
from torch_tent.demo.rails import Relays
from torch_tent.ticket import Ticket

CANARY = 0xA5
MIB = 1 << 20
_places = itertools.count(1)


class Rig:
    """`rails` TCP rails of `rate` bytes per second each, from `near` to `far`."""

    def __init__(self, rails: int = 3, rate: float = 60e6, **settings: object) -> None:
        place = next(_places) % 250
        hosts = {end: [f"127.{end}.{place}.{i + 1}" for i in range(rails)] for end in (81, 82, 83)}

        def engine(end: int, name: str) -> tent.Engine:
            chosen = {"transports": ("tcp",), "rails": tuple(hosts[end]), **settings}
            return tent.Engine(tent.Settings(**chosen), name=name)

        self.near, self.far = engine(81, "near"), engine(82, "far")
        # Far cannot dial back around the relays, as if near were behind a NAT.
        site = self.near._control._site
        object.__setattr__(site, "card", msgspec.structs.replace(site.card, addresses=()))
        targets = [(a.host, a.port) for a in self.far.card.addresses]
        self.relays = Relays(hosts[83], targets, rate)
        self.rails = rails

    def ticket(self, ticket: bytes) -> bytes:
        """The ticket of a `far` segment, with the relays' addresses in it."""
        found = Ticket.decode(ticket)
        addresses = tuple(
            msgspec.structs.replace(address, host=host, port=port)
            for address, (host, port) in zip(
                found.card.addresses, self.relays.addresses, strict=True
            )
        )
        card = msgspec.structs.replace(found.card, addresses=addresses)
        return msgspec.structs.replace(found, card=card).encode()

    def carry(self) -> int:
        """Writes a few MiB; returns how many rails took part."""
        landing = torch.zeros(8 * MIB, dtype=torch.uint8)
        with self.far.register(landing, access="read-write") as segment:
            remote = self.near.open(self.ticket(segment.ticket()))
            transfer = self.near.write(torch.ones_like(landing), remote)
            transfer.wait(30)
        return sum(size > 0 for size in transfer.report()["rails"].values())

    def warm(self) -> None:
        """Has every rail carry something, so that faults hit rails that are in use."""
        used = [self.carry()]
        while used[-1] < self.rails and len(used) < 20:
            used.append(self.carry())
        assert used[-1] >= self.rails, f"so many of {self.rails} rails were used: {used}"

    def close(self) -> None:
        self.near.close()
        self.far.close()
        self.relays.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pattern(size: int, seed: int) -> torch.Tensor:
    """`size` bytes that are not the canary's and differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 128, (size,), dtype=torch.uint8, generator=generator)
