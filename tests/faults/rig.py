"""Two engines in this process with relays between them, one per rail: real sockets, real faults.

The engines' cards name the relays, so that every byte passes one, whoever connects.
"""

from __future__ import annotations

import itertools
from typing import Any, Self

import msgspec
import torch

import torch_tent as tent
from torch_tent.card import Card
from torch_tent.demo.rails import Relays
from torch_tent.demo.relay import Side

CANARY = 0xA5
MIB = 1 << 20
_places = itertools.count(1)


class Rig:
    """`rails` TCP rails of `rate` bytes per second each, from `near` to `far`."""

    def __init__(self, rails: int = 3, rate: float = 60e6, **settings: Any) -> None:
        place = next(_places) % 250
        near = [f"127.81.{place}.{i + 1}" for i in range(rails)]
        far = [f"127.82.{place}.{i + 1}" for i in range(rails)]
        self.rails = rails
        self.relays = Relays(list(zip(near, far, strict=True)), rate)
        self.near = self._engine("near", near, settings)
        self.far = self._engine("far", far, settings)

    def _engine(self, side: Side, hosts: list[str], settings: dict[str, Any]) -> tent.Engine:
        """An engine whose card names the relays' doors: whoever dials, dials a relay."""

        def advertise(card: Card) -> Card:
            self.relays.lead(side, [(a.host, a.port) for a in card.addresses])
            addresses = tuple(
                msgspec.structs.replace(address, host=host, port=port)
                for address, (host, port) in zip(
                    card.addresses, self.relays.doors(side), strict=True
                )
            )
            return msgspec.structs.replace(card, addresses=addresses)

        chosen = tent.Settings(transports=("tcp",), rails=tuple(hosts), **settings)
        return tent.Engine(chosen, name=side, advertise=advertise)

    def carry(self) -> int:
        """Writes a few MiB; returns how many rails took part."""
        landing = torch.zeros(8 * MIB, dtype=torch.uint8)
        with self.far.register(landing, access="read-write") as segment:
            remote = self.near.open(segment.ticket())
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
