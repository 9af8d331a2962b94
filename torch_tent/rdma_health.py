"""Stage: CLI. What there is of RDMA on this host, and what is missing for its rails.

Called by doctor; pure looking: sysfs, /dev/infiniband, limits, and whether libibverbs loads. What
always holds: no device is opened, and each thing that is wrong is said once, with what to do. Each
finding is (topic, state, text, advice, facts) as in doctor.Finding.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from . import hardware, topology
from .errors import SettingsError
from .hardware import Found
from .rdma_choice import chosen_ports
from .rdma_ports import SYS, RdmaPort, rdma_ports
from .settings import Settings

DEVICES = Path("/dev/infiniband")
STATUS = Path("/proc/self/status")
CAP_IPC_LOCK = 14  # <linux/capability.h>: its holder may pin whatever he likes
MEMLOCK_BYTES_WANTED = 1 << 34
PATH_MTU_BEST = 4096
TOPIC = "RDMA"


def rdma(settings: Settings, sys: Path = SYS) -> list[Found]:
    """The host as a whole, then each port that the settings choose."""
    found = rdma_ports(sys)
    facts: dict[str, Any] = {"ports": [_facts(port) for port in found]}
    if not found and settings.rdma_devices is None:
        advice = "load its driver; without hardware, rdma_rxe makes one of any network interface"
        text = "no device: bytes go over shared memory and TCP"
        return [(TOPIC, "note", text, advice, facts)]
    try:
        chosen = chosen_ports(settings.rdma_devices, found)
    except SettingsError as error:
        return [(TOPIC, "bad", str(error), "correct or unset TENT_RDMA_DEVICES", facts)]
    lacking = [*_library(), *_access(chosen), *_memlock()]
    names = ", ".join(port.name for port in chosen)
    unused = _unused(settings)
    ready = not unused and not lacking and any(not port.trouble for port in chosen)
    text = f"{len(chosen)} of {len(found)} port(s) chosen: {names}{unused}"
    facts["chosen"] = [port.name for port in chosen]
    facts["lacking"] = lacking
    host = (TOPIC, "ok" if ready else "note", text, "; ".join(lacking), facts)
    return [host, *(_port(port) for port in chosen), *_mtus(chosen)]


def _unused(settings: Settings) -> str:
    """Why no rail will end on a port, however healthy it is."""
    return "" if "rdma" in settings.transports else "; off: rdma is not in TENT_TRANSPORTS"


def _library() -> list[str]:
    if hardware.loads("libibverbs.so.1"):
        return []
    return ["there is no libibverbs.so.1: apt-get install libibverbs1 ibverbs-providers"]


def _access(ports: list[RdmaPort]) -> list[str]:
    """Device files that are missing, or that this user may not open."""
    files = sorted({DEVICES / port.uverbs for port in ports if port.uverbs})
    missing = [str(path) for path in files if not path.exists()]
    refused = [str(path) for path in files if path.exists() and not _may_use(path)]
    lacking = []
    if missing:
        lacking.append(f"there is no {', '.join(missing)}: give the container /dev/infiniband")
    if refused:
        lacking.append(
            f"no permission on {', '.join(refused)}: join the group that owns it (ls -l), or write "
            'a udev rule: SUBSYSTEM=="infiniband_verbs", MODE="0666"'
        )
    return lacking


def _may_use(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _memlock() -> list[str]:
    """Too small a limit on pinned memory, where this process is bound by it."""
    limit = topology.memory().memlock_bytes
    if limit < 0 or limit >= MEMLOCK_BYTES_WANTED or _may_pin_all():
        return []
    return [
        f"only {limit >> 10} KiB may be pinned, and registering more fails: ulimit -l unlimited "
        "(/etc/security/limits.d, LimitMEMLOCK= in a systemd unit, --ulimit memlock=-1 in docker)"
    ]


def _may_pin_all() -> bool:
    for line in STATUS.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_IPC_LOCK & 1)
    return False


def _port(port: RdmaPort) -> Found:
    rate = f"{port.rate_mbit / 1000:g} Gbit/s" if port.rate_mbit else "rate unknown"
    numa = f", NUMA node {port.numa_node}" if port.numa_node >= 0 else ""
    mtu = f", path MTU {port.path_mtu_bytes}" if port.path_mtu_bytes else ""
    gid = f", GID {port.gid.index} ({port.gid.ip}, {port.gid.kind})" if port.gid else ""
    text = f"{port.state}, {port.link_layer}, {rate}{mtu}{numa}{gid}"
    why, _, fix = port.trouble.partition(": ")
    topic = f"RDMA port {port.name}"
    return (topic, "note" if why else "ok", f"{text}; {why}" if why else text, fix, _facts(port))


def _mtus(ports: list[RdmaPort]) -> list[Found]:
    """Path MTUs that differ or are small: two ends use the smaller of theirs."""
    usable = [port for port in ports if port.path_mtu_bytes and not port.trouble]
    small = [port for port in usable if port.path_mtu_bytes < PATH_MTU_BEST]
    if not small:
        return []
    sizes = ", ".join(f"{port.name} {port.path_mtu_bytes}" for port in usable)
    differ = len({port.path_mtu_bytes for port in usable}) > 1
    text = f"{'ports differ' if differ else 'small packets'} ({sizes}): two ends use the smaller"
    interfaces = ", ".join(sorted({port.gids[0].interface for port in small}))
    advice = f"set MTU 4200 or more on {interfaces}, on the switches, and on every other host"
    return [("RDMA path MTU", "note", text, advice, {})]


def _facts(port: RdmaPort) -> dict[str, Any]:
    """A port for JSON."""
    facts = dataclasses.asdict(port)
    facts["gids"] = [
        {"index": gid.index, "ip": str(gid.ip), "kind": gid.kind, "interface": gid.interface}
        for gid in port.gids
    ]
    return facts
