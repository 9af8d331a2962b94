"""Stage: api. Engines that are still open when the interpreter ends are closed in good time.

Engines are watched from their making on; the main thread closes them at exit. What always holds:
only this process's own engines are closed, and before what their control plane needs is gone.
"""

from __future__ import annotations

import atexit
import functools
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engines import Engine

_watched: weakref.WeakSet[Engine] = weakref.WeakSet()


def watch(engine: Engine) -> None:
    """Closes this engine at exit, if nobody has done so before."""
    _watched.add(engine)
    _close_all_at_exit()


@functools.cache
def _close_all_at_exit() -> None:
    """Registered after what modules register when they are imported, and so called before it: an
    engine that closes may still need its control plane, for links to ranks that wait for it."""
    atexit.register(_close_all)


def _close_all() -> None:
    for engine in list(_watched):
        if not engine.forked:
            engine.close()
