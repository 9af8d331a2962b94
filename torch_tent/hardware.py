"""Stage: CLI. What there is of CUDA on this host, and what is missing for its rails.

Called by doctor; pure looking: /proc, and whether the driver's library loads. What always holds: no
CUDA context is made. Each finding is (topic, state, text, advice, facts) as in doctor.Finding.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

Found = tuple[str, str, str, str, dict[str, Any]]


def loads(library: str) -> bool:
    """Whether a shared library can be loaded here."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def cuda() -> list[Found]:
    """The CUDA driver and the GPUs that the kernel knows."""
    gpus = sorted(path.name for path in Path("/proc/driver/nvidia/gpus").glob("*"))
    missing = []
    if not gpus:
        missing.append("no NVIDIA GPU is visible: install its driver, or give it to the container")
    if not loads("libcuda.so.1"):
        missing.append("no libcuda.so.1: it comes with the driver")
    facts = {"gpus": gpus, "missing": missing}
    text = f"{len(gpus)} GPU(s)" + ("" if missing else ", and a driver")
    return [("CUDA", "note" if missing else "ok", text, "; ".join(missing), facts)]
