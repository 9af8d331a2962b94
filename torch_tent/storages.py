"""Stage: api. Lets RDMA keep what it has registered of a tensor from one transfer to the next.

An engine asks before each transfer, on the caller's thread. What always holds: memory is kept only
where its end will be told to the engine before the memory goes (csrc/c10d/storages.h); where the
module that can do so is missing, nothing is kept, and each transfer registers its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import _engine, tensors, torch_native

if TYPE_CHECKING:
    from .card import Card
    from .settings import Settings

KEPT_BYTES_MIN = 16 << 10  # Less mostly rides in messages, and is registered quickly.


class Storages:
    """The plain tensors of one engine's transfers. `used`: see `Engine.verbs`; None: no use."""

    def __init__(self, native: _engine.Engine, card: Card, settings: Settings) -> None:
        self.used: Callable[[Any], None] | None = None
        # Without an RDMA port, and in a build for another torch, there is nothing to tell.
        if card.ports and settings.rdma_kept_bytes_max and torch_native.exists():
            self.used = functools.partial(_used, native.c_api)

    def source(self, x: Any) -> tuple[torch.Tensor, _engine.Layout, int]:
        """As `tensors.source`."""
        return self._told(tensors.source(x))

    def destination(self, x: Any) -> tuple[torch.Tensor, _engine.Layout, int]:
        """As `tensors.destination`."""
        return self._told(tensors.destination(x))

    def _told(
        self, found: tuple[torch.Tensor, _engine.Layout, int]
    ) -> tuple[torch.Tensor, _engine.Layout, int]:
        if self.used is not None and found[0].nbytes >= KEPT_BYTES_MIN:
            self.used(found[0])
        return found


def _used(table: object, tensor: torch.Tensor) -> None:
    torch_native.module().used(tensor, table)
