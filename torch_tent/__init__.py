"""Moves tensors between processes over every link at once: RDMA, NVLink, shared memory, TCP."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        empty,
        open,
        read,
        read_blocks,
        recv,
        register,
        send,
        stats,
        write,
        write_blocks,
    )
    from .default import engine
    from .engines import Engine
    from .errors import (
        AccessError,
        PeerLostError,
        SettingsError,
        TentError,
        TicketError,
        TransferCancelled,
        TransferError,
        TransferTimeout,
    )
    from .kv import KVCache, Notification, RemoteCache
    from .segment import RemoteSegment, Segment
    from .settings import Settings
    from .transfer import Transfer

# The only place that holds the version: pyproject.toml reads it from here without importing torch.
__version__ = "0.1.0"

# Where each public name comes from. An import of the package loads none of them: it costs next to
# nothing, starts no thread and reads no environment.
_HOMES = {
    "api": "empty open read read_blocks recv register send stats write write_blocks",
    "default": "engine",
    "engines": "Engine",
    "errors": "AccessError PeerLostError SettingsError TentError TicketError TransferCancelled "
    "TransferError TransferTimeout",
    "kv": "KVCache Notification RemoteCache",
    "segment": "RemoteSegment Segment",
    "settings": "Settings",
    "transfer": "Transfer",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AccessError",
    "Engine",
    "KVCache",
    "Notification",
    "PeerLostError",
    "RemoteCache",
    "RemoteSegment",
    "Segment",
    "Settings",
    "SettingsError",
    "TentError",
    "TicketError",
    "Transfer",
    "TransferCancelled",
    "TransferError",
    "TransferTimeout",
    "empty",
    "engine",
    "open",
    "read",
    "read_blocks",
    "recv",
    "register",
    "send",
    "stats",
    "write",
    "write_blocks",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'torch_tent' has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
