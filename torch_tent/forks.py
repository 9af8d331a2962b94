"""Stage: api. What a forked child finds in the place of its parent's engines: a clear error.

Engines are watched from their making on; the child's part runs once, before the child's own code.
What always holds: a child never touches its parent's threads, locks or connections, nor closes them
when it ends.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from .errors import TentError

if TYPE_CHECKING:
    from .engines import Engine

_watched: weakref.WeakSet[Engine] = weakref.WeakSet()


class Forked:
    """What a child has in the place of the data plane: every use raises."""

    def __getattr__(self, name: str) -> Any:
        raise forked_error()


def forked_error() -> TentError:
    """What a child is told that uses its parent's engine."""
    return TentError(
        "this process was forked from one that uses torch_tent, whose connections and threads stay "
        "with the parent: start processes with the methods 'spawn' or 'forkserver', or fork before "
        "the first use of torch_tent; a torch_tent.Engine() of its own works, too"
    )


def watch(engine: Engine) -> None:
    """Lets children know that this engine is their parent's."""
    _watched.add(engine)


def _in_child() -> None:
    for engine in list(_watched):
        engine._forget(Forked())


os.register_at_fork(after_in_child=_in_child)
