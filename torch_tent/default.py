"""Stage: api. The process's default engine, made when it is first needed.

Called by the functions of the package, on any thread. What always holds: there is at most one, and
its settings were read from the environment when it was made.
"""

from __future__ import annotations

import threading

from .engines import Engine
from .forks import forked_error

_made: Engine | None = None
_lock = threading.Lock()


def engine() -> Engine:
    """The engine that the functions of `torch_tent` use.

    Made on the first call, with the settings of the environment (TENT_*); made anew after it was
    closed. Raises SettingsError for settings that cannot be used, TentError in a child of fork.
    """
    global _made
    found = _made
    if found is not None and not found.closed:
        if found.forked:
            raise forked_error()
        return found
    with _lock:
        if _made is None or _made.closed:
            _made = Engine()
        return _made
