"""Stage: api. What every verb takes beside its memory: priority, timeout, deadline, require.

Called by the verbs on the caller's thread; pure. What always holds: options that cannot be met are
errors here, at the call, never a slower path later.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

from . import cuda
from ._engine import Layout
from .errors import TransferError

Priority = Literal["foreground", "background"]
Require = Literal["rdma", "nvlink", "shm", "tcp"] | None

# Bits of RailKind in csrc/core/types.h. What the caller names, what it may be made of.
_RAILS = {"shm": 0b00011, "tcp": 0b00100, "rdma": 0b01000, "nvlink": 0b10000}
_TRANSPORTS = {"shm": ("shm", "cma"), "tcp": ("tcp",), "rdma": ("rdma",), "nvlink": ("cuda_ipc",)}
_PRIORITIES = {"foreground": 0, "background": 1}

NONE: dict[str, Any] = {}


def for_engine(
    priority: str,
    timeout: float | None,
    deadline: float | None,
    require: str | None,
    transports: Collection[str],
) -> dict[str, Any]:
    """The options as the engine wants them. `transports` are those that the settings allow.

    Raises ValueError or TypeError for a value that means nothing, and TransferError for rails that
    this engine cannot have.
    """
    if priority == "foreground" and timeout is None and deadline is None and require is None:
        return NONE
    found: dict[str, Any] = {}
    if priority not in _PRIORITIES:
        raise ValueError(f"priority is {priority!r}: it can be 'foreground' or 'background'")
    found["priority"] = _PRIORITIES[priority]
    for name, seconds in (("timeout", timeout), ("deadline", deadline)):
        if seconds is not None:
            found[name] = _seconds(name, seconds)
    if require is not None:
        found["rails"] = _rails(require, transports)
    return found


def check_memory(require: str | None, local: Layout) -> None:
    """Raises TransferError where the memory alone tells that `require` cannot be met."""
    if require == "nvlink" and local.device == cuda.HOST and local.bytes > 0:
        raise TransferError(
            "require='nvlink' cannot be met: the bytes are not in a GPU's memory",
            cause="no memory of a GPU",
        )


def _seconds(name: str, seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} is {seconds!r}: it is a number of seconds from now, or None")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} is {seconds!r}: it is seconds from now, 0 or more; None for none")
    return float(seconds)


def _rails(require: str, transports: Collection[str]) -> int:
    if require not in _RAILS:
        names = ", ".join(map(repr, _RAILS))
        raise ValueError(f"require is {require!r}: it can be one of {names}, or None")
    if not set(_TRANSPORTS[require]) & set(transports):
        raise TransferError(
            f"require={require!r} cannot be met: the settings allow the transports "
            f"{', '.join(sorted(transports))} alone; add {_TRANSPORTS[require][0]} to "
            "TENT_TRANSPORTS",
            cause=f"no {require} rails",
        )
    return _RAILS[require]
