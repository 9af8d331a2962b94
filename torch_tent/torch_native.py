"""Stage: api. The native module that was compiled against torch's headers: finds the one that fits.

Called by who needs it, on any thread. What always holds: a module for another torch is never
loaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.resources
from typing import Any

import torch

_C10D = "_c10d_torch_"  # The module's name, before torch's minor version: 2_13.


@functools.cache
def module() -> Any:
    """The module for the installed torch: its ABI lasts for one minor version.

    Raises ImportError where there is none.
    """
    found, wanted = _versions(), _version()
    if wanted not in found:
        raise ImportError(
            f"this torch_tent has no process group for PyTorch {torch.__version__} (it was built "
            f"for {', '.join(found) or 'none'}): build it again with "
            "`pip install --no-build-isolation --force-reinstall --no-deps .`"
        )
    return importlib.import_module(f".{_C10D}{wanted.replace('.', '_')}", __package__)


def exists() -> bool:
    """Whether there is one for the installed torch."""
    return _version() in _versions()


def _version() -> str:
    return ".".join(torch.__version__.split(".")[:2])


@functools.cache
def _versions() -> list[str]:
    return sorted(
        entry.name.split(".")[0].removeprefix(_C10D).replace("_", ".")
        for entry in importlib.resources.files(__package__).iterdir()
        if entry.name.startswith(_C10D)
    )
