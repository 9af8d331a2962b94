"""Stage: control. What one engine's control plane works with: the engine, the settings, who we are.

A value that the dialer, the listener and the switchboard share; any thread. The protocols say what
they need of `torch_tent._engine`, so that tests can put a recorder in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .card import Card
from .rail_ends import RailEnd
from .rdma_pairing import OwnPort
from .settings import Settings

LOCAL_KINDS = ("cma", "shm")
UNIX_KINDS = (*LOCAL_KINDS, "cuda_ipc")  # Links that come over a Unix socket.
KIND_BITS = {
    "shm": 1 << 0,
    "cma": 1 << 1,
    "tcp": 1 << 2,
    "rdma": 1 << 3,
    "cuda_ipc": 1 << 4,
}  # RailKind in csrc/core/types.h


class EngineLinks(Protocol):
    """The part of `_engine.Engine` that is the control plane's."""

    def add_peer(self, name: str) -> int: ...
    def lose_peer(self, peer: int, reason: str) -> None: ...
    def alive(self, peer: int) -> bool: ...
    def closed(self, peer: int) -> bool: ...
    def add_link(
        self,
        peer: int,
        link: int,
        kind: str,
        rail: str,
        fds: Sequence[int],
        dialed: bool,
        pid: int,
        rate_hint: float,
    ) -> None: ...
    def rdma_expected(self) -> None: ...
    def rdma_open(self, link: int, device: str, port: int, gid_index: int) -> bytes: ...
    def rdma_join(self, link: int, endpoint: bytes, dialed: bool) -> None: ...
    def rdma_greeted(self, link: int) -> bool: ...
    def rdma_drop(self, link: int) -> None: ...
    def close_link(self, link: int, reason: str) -> None: ...
    def no_rails(self, peer: int, rails: int, reason: str) -> None: ...
    def next_events(self, timeout: float | None) -> list[tuple[str, int, int, str, str]]: ...
    def probe_word(self) -> tuple[int, int]: ...


class Native(Protocol):
    """The functions of `_engine` for links on one host."""

    def open_local_channel(self) -> tuple[list[int], list[int]]: ...
    def probe_cma(self, pid: int, address: int, value: int) -> str: ...


@dataclass(frozen=True)
class Site:
    """One engine as its control plane sees it."""

    engine: EngineLinks
    native: Native
    settings: Settings
    card: Card
    ends: tuple[RailEnd, ...]
    ports: tuple[OwnPort, ...] = ()

    @property
    def step_timeout_s(self) -> float:
        """How long one answer of a handshake may take: more than connecting, the peer's control
        thread may have to wait for a processor."""
        return max(0.5, 2 * self.settings.connect_timeout_s)


@dataclass(frozen=True)
class NewLink:
    """A connection whose handshake has succeeded; its descriptors are the holder's to pass on."""

    link: int
    kind: str
    name: str  # of its rail, as in "tcp 10.0.0.1>10.0.0.2" or "rdma mlx5_0/1>mlx5_0/1"
    fds: tuple[int, ...]
    dialed: bool
    pid: int
    their_session: bytes


def rail_name(kind: str, own: str = "", theirs: str = "") -> str:
    """A rail's name: stable over reconnects, whoever connects."""
    return f"{kind} {own}>{theirs}" if own else kind
