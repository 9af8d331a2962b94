"""Stage: start-up. Tells torch.distributed that a backend named "tent" exists, and nothing more.

torch calls this module through the entry points in pyproject.toml, in every process of an
environment that has torch_tent installed, most of which never use it. So it imports nothing of
torch_tent, costs microseconds, never raises, and may be called any number of times.
"""

from __future__ import annotations

import logging
from typing import Any


def create(backend_options: Any, group_options: Any) -> Any:
    """Makes the process group backend; torch calls it when a group is made with "tent"."""
    from torch_tent import process_group

    return process_group.create(backend_options, group_options)


def register() -> None:
    """Registers "tent"; torch 2.14 and later call this when the backend is first asked for."""
    from torch.distributed import Backend

    if "tent" not in Backend.backend_list:
        Backend.register_backend("tent", create, extended_api=True, devices=["cpu", "cuda"])


def register_at_import() -> None:
    """Registers "tent" early; torch 2.11 to 2.13 call this at the end of `import torch`."""
    try:
        import torch.distributed as dist

        # torch 2.14 looks backends up by name: there, an import of torch should not pay for ours.
        looks_up_by_name = hasattr(dist, "Backend") and hasattr(
            dist.Backend, "_ensure_backend_registered"
        )
        if dist.is_available() and not looks_up_by_name:
            register()
    except Exception as error:
        # An exception here would make `import torch` fail for programs that do not know of us.
        logging.getLogger("torch_tent").warning("backend 'tent' is not registered: %s", error)
