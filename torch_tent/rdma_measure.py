"""Stage: CLI. How quickly each RDMA device registers memory, for `doctor`, found out by doing it.

What always holds: nothing stays registered or open, and a device that cannot be tried is said to be
so, with the reason. Each finding is (topic, state, text, advice, facts) as in doctor.Finding.
"""

from __future__ import annotations

from pathlib import Path

from .errors import SettingsError
from .hardware import Found
from .rdma_choice import chosen_ports
from .rdma_ports import SYS, rdma_ports
from .settings import Settings

TRIED_BYTES = 64 << 20
SLOW_BYTES_PER_S = 1e9  # Less than many links carry: a first transfer waits for it.


def registration(settings: Settings, sys: Path = SYS, library: str = "") -> list[Found]:
    """A finding for each device of the chosen ports; none where other findings say what is wrong.

    `library`: the libibverbs to open, "" for the system's.
    """
    try:
        chosen = chosen_ports(settings.rdma_devices, rdma_ports(sys))
    except SettingsError:
        return []
    devices = sorted({port.device for port in chosen if not port.trouble})
    return [_tried(device, library) for device in devices]


def _tried(device: str, library: str) -> Found:
    topic = f"RDMA registration {device}"
    try:
        from . import _engine

        seconds = _engine.measure_registration(library, device, TRIED_BYTES)
    except (ImportError, RuntimeError) as error:
        text, _, advice = str(error).partition("; ")
        return (topic, "note", f"not possible: {text}", advice, {})
    rate = TRIED_BYTES / max(seconds, 1e-9)
    text = f"{rate / 1e6:.0f} MB/s ({TRIED_BYTES >> 20} MiB of host memory)"
    facts = {"bytes_per_s": rate}
    if rate >= SLOW_BYTES_PER_S:
        return (topic, "ok", text, "", facts)
    advice = "register() memory that is used often, well before; huge pages make it quicker"
    return (topic, "note", f"slow: {text}", advice, facts)
