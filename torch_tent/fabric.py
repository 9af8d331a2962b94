"""Stage: CLI. `doctor --rdma`: which RDMA port of this host reaches which, and whose fault it is.

Called by doctor on the main thread. The verbs go through pyverbs alone (fabric_verbs.py), nothing
of the engine is used: what works here and fails in a transfer is torch_tent's fault, what fails
here is not. What always holds: every pair of ports is tried once, in both directions, with an end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from .errors import SettingsError
from .hardware import Found
from .rdma_choice import chosen_ports
from .rdma_ports import SYS, Gid, RdmaPort, rdma_ports
from .settings import Settings

TOPIC = "RDMA fabric"
INSTALL = (
    "pip install 'torch_tent[rdma]' where rdma-core is as new as it; on Debian apt-get install "
    "python3-pyverbs and set PYTHONPATH=/usr/lib/python3/dist-packages (docs/rdma.md)"
)


@dataclass(frozen=True)
class Reach:
    """How one port's writes to and reads from another went. `trouble` is "" if all was well."""

    source: str
    target: str
    trouble: str = ""
    advice: str = ""
    write_s: float = 0.0  # a 64-byte write, from posting to completion
    path_mtu_bytes: int = 0
    corrupt: bool = False  # the operation succeeded, but the bytes are others

    @property
    def text(self) -> str:
        """As one item of a list."""
        if self.trouble:
            return f"{self.target} ({self.trouble})"
        return f"{self.target} ({self.write_s * 1e6:.0f} µs, path MTU {self.path_mtu_bytes})"


class Prober(Protocol):
    """Who tries one pair; fabric_verbs.VerbsProber, or a recorder in tests."""

    def reach(self, source: RdmaPort, target: RdmaPort) -> Reach: ...
    def close(self) -> None: ...


def same_kind(source: RdmaPort, target: RdmaPort) -> tuple[Gid, Gid] | None:
    """The best pair of GIDs that can talk: of one kind, and of one IP version; None: there is none.

    InfiniBand and Ethernet never meet, nor do RoCE v1 and v2.
    """
    if source.link_layer != target.link_layer:
        return None
    for own in source.gids:
        for other in target.gids:
            if own.kind == other.kind and own.ip.version == other.ip.version:
                return own, other
    return None


def fabric(settings: Settings, prober: Prober | None = None) -> list[Found]:
    """Tries every pair of chosen ports; one finding for each source, and one for the whole."""
    try:
        ports = chosen_ports(settings.rdma_devices, rdma_ports(SYS))
    except SettingsError as error:
        return [(TOPIC, "bad", str(error), "correct or unset TENT_RDMA_DEVICES", {})]
    usable = [port for port in ports if not port.trouble]
    if not usable:
        why = "; ".join(port.trouble for port in ports) or "there is no RDMA device"
        return [(TOPIC, "bad", f"nothing to try: {why}", "", {})]
    if prober is None:
        try:
            from .fabric_verbs import VerbsProber
        except ImportError as error:
            return [(TOPIC, "bad", f"cannot be tried without pyverbs: {error}", INSTALL, {})]
        prober = VerbsProber()
    try:
        reached = [prober.reach(source, target) for source in usable for target in usable]
    finally:
        prober.close()
    return judged(reached)


def judged(reached: Iterable[Reach]) -> list[Found]:
    """What the tries say: one finding for each source port, then the verdict."""
    by_source: dict[str, list[Reach]] = {}
    for each in reached:
        by_source.setdefault(each.source, []).append(each)
    found = [_of_port(source, tries) for source, tries in by_source.items()]
    bad = [
        source for (_, state, *_), source in zip(found, by_source, strict=True) if state == "bad"
    ]
    if bad:
        text = f"verbs fail on {', '.join(bad)} without any part of torch_tent"
        advice = "put the device, its driver or the network right first"
        return [*found, (TOPIC, "bad", text, advice, {})]
    text = "verbs work on every port; a transfer that fails on a pair that works here is our fault"
    return [*found, (TOPIC, "ok", text, "", {})]


def _of_port(source: str, tries: list[Reach]) -> Found:
    """A port that reaches nothing, not even itself, is bad; one that reaches no other is noted:
    ports of separate networks do not reach each other, and need not."""
    good = [each for each in tries if not each.trouble]
    failed = [each for each in tries if each.trouble]
    others = [each for each in good if each.target != source]
    lonely = not others and any(each.target != source for each in tries)
    corrupt = any(each.corrupt for each in tries)
    state = "bad" if corrupt or not good else "note" if lonely else "ok"
    parts = [f"reaches {', '.join(each.text for each in good) or 'nothing'}"]
    if failed:
        parts.append(f"does not reach {', '.join(each.text for each in failed)}")
    advice = "" if state == "ok" else "; ".join(dict.fromkeys(e.advice for e in failed if e.advice))
    facts = {
        each.target: {"trouble": each.trouble, "write_s": each.write_s, "mtu": each.path_mtu_bytes}
        for each in tries
    }
    return (f"{TOPIC} from {source}", state, "; ".join(parts), advice, facts)
