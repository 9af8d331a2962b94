"""Stage: CLI. What there is of RDMA and CUDA on this host, and what is missing for their rails.

Called by doctor; pure looking: /sys, /dev, limits, and whether the drivers' libraries load. What
always holds: no device is opened and no CUDA context is made. Each finding is (topic, state, text,
advice, facts) as in doctor.Finding.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from . import topology

INFINIBAND = Path("/sys/class/infiniband")
DEVICES = Path("/dev/infiniband")
NOT_YET = "this version moves bytes over shared memory and TCP only"
MEMLOCK_BYTES_WANTED = 1 << 34

Found = tuple[str, str, str, str, dict[str, Any]]


def rdma() -> list[Found]:
    """RDMA devices with their ports, user access, library, and the memory that may be pinned."""
    devices = _devices()
    missing = []
    if not devices:
        missing.append("no device (/sys/class/infiniband is empty): load its driver, or rdma_rxe")
    if devices and not any(os.access(path, os.R_OK | os.W_OK) for path in DEVICES.glob("uverbs*")):
        missing.append("no access to /dev/infiniband/uverbs*: give it to the container or the user")
    if not _loads("libibverbs.so.1"):
        missing.append("no libibverbs.so.1: apt-get install libibverbs1 ibverbs-providers")
    limit = topology.memory().memlock_bytes
    if 0 <= limit < MEMLOCK_BYTES_WANTED:
        missing.append(f"only {limit >> 10} KiB may be pinned: ulimit -l unlimited")
    facts = {"devices": devices, "memlock_bytes": limit, "missing": missing}
    names = ", ".join(f"{name} ({', '.join(ports)})" for name, ports in devices.items())
    text = f"{names or 'no devices'}; {NOT_YET}"
    return [("RDMA", "note", text, "; ".join(missing), facts)]


def _devices() -> dict[str, list[str]]:
    """Each device's ports, as in "port 1: ACTIVE, 100 Gb/sec (4X EDR), Ethernet"."""
    found: dict[str, list[str]] = {}
    for device in sorted(INFINIBAND.glob("*")):
        found[device.name] = []
        for port in sorted((device / "ports").glob("*")):
            parts = [_read(port / name) for name in ("state", "rate", "link_layer")]
            words = [part.partition(": ")[2] or part for part in parts if part]
            found[device.name].append(f"port {port.name}: {', '.join(words)}")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _loads(library: str) -> bool:
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
    if not _loads("libcuda.so.1"):
        missing.append("no libcuda.so.1: it comes with the driver")
    facts = {"gpus": gpus, "missing": missing}
    text = f"{len(gpus)} GPU(s); {NOT_YET}"
    return [("CUDA", "note", text, "; ".join(missing), facts)]
