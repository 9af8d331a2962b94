"""Stage: demo. What every process of a run is told, and the addresses of its rails.

Made by the parent process, sent to its children; values, any thread. What always holds: each
end of each rail has a loopback address of its own, which needs no root.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch_tent.demo.prompt import Shape
from torch_tent.settings import Settings

PATIENCE_S = 120.0  # For a process to start, or to say what it has done.
THREADS = 1  # Of torch, in every process: sums are then the same, and a processor stays free.
TRANSFER_S_MAX = 60.0  # No write takes longer, whatever happens to the rails.


@dataclass(frozen=True)
class Plan:
    """One run: the model, the prompt's tokens, the rails, and the secret both engines know."""

    shape: Shape
    prompt: list[int]
    rails: int
    secret: bytes

    def settings(self, process: str) -> Settings:
        """TCP alone, one rail per address."""
        return Settings(
            transports=("tcp",),
            rails=tuple(hosts(process, self.rails)),
            secret=self.secret,
        )


NETWORKS = {"prefill": 1, "decode": 2}


def hosts(process: str, rails: int) -> list[str]:
    """The addresses of the prefill or the decode engine, one per rail."""
    return [f"127.0.{NETWORKS[process]}.{rail + 1}" for rail in range(rails)]


def rail_of(name: str) -> int:
    """The rail whose name, as in "tcp 127.0.1.3>127.0.2.3", an engine's record tells."""
    return int(name.rpartition(".")[2]) - 1


def note_of(chunk: int, layer: int) -> bytes:
    """The notification of one layer of one chunk."""
    return f"chunk {chunk} layer {layer}".encode()
