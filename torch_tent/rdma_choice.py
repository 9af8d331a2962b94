"""Stage: control. Which RDMA ports an engine uses: what TENT_RDMA_DEVICES makes of those found.

Called once when an engine is made, and by doctor; any thread; pure. What always holds: an entry
that matches nothing is an error, never silently "all"; a port that is named but down is returned
all the same, because it may come up (`RdmaPort.trouble` says what it lacks now).

An entry is DEVICE, DEVICE:PORT or either with @GID, as in mlx5_0, mlx5_1:2, mlx5_0:1@3; * and ?
stand for any characters of the device, and ^ before an entry leaves out what it matches. A list of
exclusions alone means: all others.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, replace

from .errors import SettingsError
from .rdma_ports import Gid, RdmaPort

ENTRY = re.compile(r"(\^?)([A-Za-z0-9_.*?-]+)(?::(\d+))?(?:@(\d+))?")


@dataclass(frozen=True)
class Entry:
    """One entry of the list, taken apart."""

    text: str
    excludes: bool
    device: str
    port: int | None
    gid: int | None

    def matches(self, port: RdmaPort) -> bool:
        """Whether it speaks of this port."""
        right_port = self.port in (None, port.number)
        return right_port and fnmatch.fnmatchcase(port.device, self.device)


def chosen_ports(devices: tuple[str, ...] | None, found: list[RdmaPort]) -> list[RdmaPort]:
    """The ports that `Settings.rdma_devices` asks for, in the order found; None: all of them.

    A port whose entry names a GID has that one first. Raises SettingsError for an entry that is
    malformed or matches nothing, for a GID that is not there, and for a list that leaves nothing.
    """
    if devices is None:
        return list(found)
    entries = [_entry(text) for text in devices]
    for entry in entries:
        if not any(entry.matches(port) for port in found):
            raise SettingsError(
                f"rdma_devices (TENT_RDMA_DEVICES) names {entry.text}, which matches no port of "
                f"this host; {_here(found)}"
            )
    wanted = [entry for entry in entries if not entry.excludes]
    chosen = []
    for port in found:
        if any(entry.excludes and entry.matches(port) for entry in entries):
            continue
        naming = [entry for entry in wanted if entry.matches(port)]
        if naming or not wanted:
            chosen.append(_with_gid(port, naming))
    if not chosen:
        raise SettingsError(
            f"rdma_devices (TENT_RDMA_DEVICES) = {','.join(devices)} leaves no port of this host; "
            f"{_here(found)}"
        )
    return chosen


def _entry(text: str) -> Entry:
    match = ENTRY.fullmatch(text)
    if match is None or (match.group(1) and match.group(4)):
        raise SettingsError(
            f"rdma_devices (TENT_RDMA_DEVICES) names {text!r}: an entry is DEVICE, DEVICE:PORT or "
            "DEVICE:PORT@GID, as in mlx5_0, mlx5_0:1 or mlx5_0:1@3, or ^DEVICE to leave one out"
        )
    excludes, device, port, gid = match.groups()
    numbers = (int(port) if port else None, int(gid) if gid else None)
    return Entry(text, bool(excludes), device, *numbers)


def _with_gid(port: RdmaPort, naming: list[Entry]) -> RdmaPort:
    """The port with the GID first that an entry names for it."""
    indices = {entry.gid for entry in naming if entry.gid is not None}
    if not indices:
        return port
    if len(indices) > 1:
        raise SettingsError(
            f"rdma_devices (TENT_RDMA_DEVICES) names several GIDs for {port.name}: name one"
        )
    [index] = indices
    first = [gid for gid in port.gids if gid.index == index]
    if not first:
        raise SettingsError(
            f"rdma_devices (TENT_RDMA_DEVICES) asks for GID {index} of {port.name}, which is "
            f"empty; its GIDs are {', '.join(map(_shown, port.gids)) or 'none'}"
        )
    return replace(port, gids=(*first, *(gid for gid in port.gids if gid.index != index)))


def _shown(gid: Gid) -> str:
    return f"{gid.index} ({gid.ip}, {gid.kind})"


def _here(found: list[RdmaPort]) -> str:
    ports = ", ".join(f"{port.name} ({port.state})" for port in found)
    return f"its ports are {ports}" if ports else "it has no RDMA device"
