"""Stage: tests, in the virtual machine. Debian's pyverbs, for an environment of the same Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PACKAGES = Path("/usr/lib/python3/dist-packages")


def require_pyverbs() -> None:
    """Makes `import pyverbs` possible; skips the module where it is made for another Python.

    Called before the import. The folder goes behind all others, so that nothing else comes from it.
    """
    version = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    if not list(PACKAGES.glob(f"pyverbs/qp.{version}-*.so")):
        reason = f"Debian's pyverbs is not for Python {sys.version.split()[0]}"
        pytest.skip(reason, allow_module_level=True)
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
