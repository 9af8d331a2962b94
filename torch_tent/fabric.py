"""Stage: CLI. `doctor --rdma`: which RDMA port reaches which, and whose fault it is.

Called by doctor on the main thread. The verbs go through pyverbs alone (fabric_verbs.py), nothing
of the engine is used: what works here and fails in a transfer is torch_tent's fault, what fails
here is not. The targets are the ports of this host, or of another one whose doctor listens
(fabric_talk.py). What always holds: every pair is tried once in each direction that is asked for.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from . import fabric_talk
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
    """Tries every pair of this host's chosen ports; a finding for each source, one for all."""
    ports, trouble = _usable(settings, prober is None)
    if trouble:
        return trouble
    if prober is None:
        from .fabric_verbs import Here, VerbsProber

        prober = VerbsProber(Here(ports))
    return judged(_tried(prober, ports, ports))


def fabric_to(settings: Settings, address: str) -> list[Found]:
    """The same from this host's ports to those of the host that listens at HOST:PORT."""
    ports, trouble = _usable(settings)
    if trouble:
        return trouble
    from .fabric_verbs import There, VerbsProber

    try:
        talk = fabric_talk.dial(address, settings.secret)
        try:
            there = talk.receive(fabric_talk.Ports)
            targets = [fabric_talk.as_port(far, there.host) for far in there.ports]
            tries = _tried(VerbsProber(There(talk)), ports, targets)
            return judged([replace(e, target=f"{e.target} on {there.host}") for e in tries])
        finally:
            talk.close()
    except fabric_talk.TalkError as error:
        return [(TOPIC, "bad", str(error), "", {})]


def fabric_for_others(settings: Settings, address: str) -> list[Found]:
    """Listens at HOST:PORT and makes far ends for the one host that calls, until it hangs up."""
    ports, trouble = _usable(settings)
    if trouble:
        return trouble
    from .fabric_verbs import serve

    try:
        with fabric_talk.listen(address, settings.secret) as listener:
            print(f"listening: python -m torch_tent doctor --rdma --to {address}", flush=True)
            talk = fabric_talk.accept(listener, settings.secret)
        talk.send(fabric_talk.Ports(socket.gethostname(), tuple(map(fabric_talk.as_far, ports))))
        made = serve(talk, ports)
        talk.close()
    except fabric_talk.TalkError as error:
        return [(TOPIC, "bad", str(error), "", {})]
    text = f"made {made} far end(s) for the other host, which says how it went"
    return [(TOPIC, "ok", text, "", {})]


def _usable(settings: Settings, with_verbs: bool = True) -> tuple[list[RdmaPort], list[Found]]:
    """The ports to try; or why there is nothing to try with."""
    try:
        ports = chosen_ports(settings.rdma_devices, rdma_ports(SYS))
    except SettingsError as error:
        return [], [(TOPIC, "bad", str(error), "correct or unset TENT_RDMA_DEVICES", {})]
    usable = [port for port in ports if not port.trouble]
    if not usable:
        why = "; ".join(port.trouble for port in ports) or "there is no RDMA device"
        return [], [(TOPIC, "bad", f"nothing to try: {why}", "", {})]
    try:
        if with_verbs:
            import pyverbs  # noqa: F401
    except ImportError as error:
        return [], [(TOPIC, "bad", f"cannot be tried without pyverbs: {error}", INSTALL, {})]
    return usable, []


def _tried(prober: Prober, sources: list[RdmaPort], targets: list[RdmaPort]) -> list[Reach]:
    try:
        return [prober.reach(own, other) for own in sources for other in targets]
    finally:
        prober.close()


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
    if not any(each.trouble == "" for tries in by_source.values() for each in tries):
        text = "no port reaches any other, without any part of torch_tent"
        return [*found, (TOPIC, "bad", text, "put the network between them right first", {})]
    text = "verbs work where they should; a transfer that fails on such a pair is our fault"
    return [*found, (TOPIC, "ok", text, "", {})]


def _of_port(source: str, tries: list[Reach]) -> Found:
    """A port that does not even reach itself is bad; one that reaches no other is noted: ports of
    separate networks do not reach each other, and need not."""
    good = [each for each in tries if not each.trouble]
    failed = [each for each in tries if each.trouble]
    not_itself = any(each.target == source for each in failed) and not good
    lonely = bool(failed) and not any(each.target != source for each in good)
    corrupt = any(each.corrupt for each in tries)
    state = "bad" if corrupt or not_itself else "note" if lonely else "ok"
    parts = [f"reaches {', '.join(each.text for each in good) or 'nothing'}"]
    if failed:
        parts.append(f"does not reach {', '.join(each.text for each in failed)}")
    advice = "" if state == "ok" else "; ".join(dict.fromkeys(e.advice for e in failed if e.advice))
    facts = {
        each.target: {"trouble": each.trouble, "write_s": each.write_s, "mtu": each.path_mtu_bytes}
        for each in tries
    }
    return (f"{TOPIC} from {source}", state, "; ".join(parts), advice, facts)
