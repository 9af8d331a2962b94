"""Stage: control. The control plane of one engine: finds peers, connects them, and hands the links
to the engine.

Made and closed by whoever makes the engine; `peer` and the other public methods may be called by
any thread. Two daemon threads: one runs the handshakes (asyncio), one waits for the engine's
events. What always holds: after `close` no thread, socket or descriptor is left.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

from . import topology
from .card import INCARNATION_BYTES, NAME_BYTES_MAX, PORTS_MAX, Card
from .contact import Contact, Contacts
from .errors import TentError
from .listener import Listener, open_tcp, open_unix
from .rail_ends import RailEnd, rail_ends
from .rdma_choice import chosen_ports
from .rdma_pairing import OwnPort, own_ports
from .rdma_ports import rdma_ports
from .settings import Settings
from .site import KIND_BITS, UNIX_KINDS, EngineLinks, Native, Site
from .switchboard import Switchboard

EVENTS_WAIT_S = 0.25
JOIN_S = 5.0

log = logging.getLogger("torch_tent")
_numbers = itertools.count(1)  # of the engines of this process, to tell their names apart
_living: weakref.WeakSet[ControlPlane] = weakref.WeakSet()


class ControlPlane:
    """Who may talk, and over which links."""

    def __init__(
        self,
        engine: EngineLinks,
        settings: Settings,
        *,
        name: str = "",
        native: Native | None = None,
        advertise: Callable[[Card], Card] | None = None,
    ) -> None:
        """Opens the doors and starts the threads. Raises SettingsError where they cannot be opened.

        Args: `name` is for people; `advertise` may change the card that peers get to see (ports
        that are forwarded); `native` stands in for `torch_tent._engine`.
        """
        if native is None:
            from . import _engine

            native = _engine
        self._pid = os.getpid()
        self._engine = engine
        self._contacts = Contacts()
        self._closing = threading.Event()
        ends: tuple[RailEnd, ...] = ()
        ports = _rdma_ports(settings)
        if "tcp" in settings.transports or ports:  # RDMA links are made over these doors, too.
            ends = tuple(rail_ends(settings, topology.interfaces()))
        self._sockets, addresses = open_tcp(ends, settings.listen_port)
        try:
            card = _make_card(engine, settings, name, addresses, ports)
            if card.local_name:
                self._sockets.append(open_unix(card.local_name))
            card = card if advertise is None else advertise(card)
        except BaseException:
            self._close_sockets()
            raise
        if ports:
            engine.rdma_expected()
        if "cma" in settings.transports and topology.allow_reading():
            log.info("ptrace_scope is 1: other processes of this user may now read this one (cma)")
        self._site = Site(engine, native, settings, card, ends, ports)
        self._start()

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(started,), name="tent-control", daemon=True),
            threading.Thread(target=self._listen_to_engine, name="tent-events", daemon=True),
        ]
        self._threads[0].start()
        started.wait()
        self._threads[1].start()
        _living.add(self)

    # ---- any thread ------------------------------------------------------------------------------

    def card(self) -> Card:
        """How to reach this engine."""
        return self._site.card

    def peer(self, card: Card) -> int:
        """The engine's number for a peer; connections are made when the first transfer wants one.

        The same number as long as the peer lives and its session was not given up; afterwards a new
        one, so that a peer that was only out of reach can be talked to again. One that has closed
        its engine keeps its number: what it has sent can still be received. Raises TentError for
        our own card, and where no rail can lead to the peer.
        """
        self._check()
        if card.incarnation == self._site.card.incarnation:
            raise TentError("this is the engine's own card: an engine is not its own peer")
        return self._contacts.peer(self._site, card)

    def card_of(self, peer: int) -> Card | None:
        """The card of one of the engine's peers, also of one that has called us or is lost."""
        return self._contacts.card_of(peer)

    def unreachable(self, peer: int, mask: int) -> str:
        """Why no rail of these kinds (bits of RailKind) can lead to the peer; "" while one may, and
        where the peer is lost: the engine knows why."""
        contact = self._contacts.of_peer(peer)
        if contact is None:
            return ""
        possible = {s.rail.kind for s in contact.rails if s.link or s.arriving or s.can_dial}
        refused = {kind for kind in contact.notes if not _linked(contact, kind)}
        if any(KIND_BITS[kind] & mask for kind in possible - refused):
            return ""
        kinds = [kind for kind, bit in KIND_BITS.items() if bit & mask]
        if not kinds:
            return "this engine has no such transport"
        told = [f"{kind}: {contact.notes[kind]}" for kind in kinds if kind in contact.notes]
        return "; ".join(told) or f"no address of {contact.card.name} can be reached from here"

    def why_not_faster(self, peer: int) -> str:
        """Which faster kinds of rail are not used with this peer, and why; "" when none is."""
        contact = self._contacts.of_peer(peer)
        reasons: dict[str, list[str]] = {}
        for kind, why in ({} if contact is None else dict(contact.notes)).items():
            if kind != "rdma" or (contact is not None and not contact.local):  # shm is faster
                reasons.setdefault(why, []).append(kind)
        return "; ".join(f"no {', '.join(kinds)}: {why}" for why, kinds in reasons.items())

    def stats(self) -> dict[str, Any]:
        """What is known of peers and rails, as a plain dict. `names` holds lost peers, too."""
        site = self._site
        return {
            "name": site.card.name,
            "incarnation": site.card.incarnation.hex(),
            "listening": [f"{a.host} port {a.port} ({a.interface})" for a in site.card.addresses],
            "secret": site.settings.secret is not None,
            "names": self._contacts.names(),
            "peers": {contact.peer: _peer_stats(contact) for contact in self._contacts.all()},
        }

    def close(self) -> None:
        """Stops listening and dialing; links that the engine has stay its own. Idempotent.

        Returns at once when the engine was closed before (which stops the threads by itself), else
        within EVENTS_WAIT_S.
        """
        if os.getpid() != self._pid or self._closing.is_set():
            return
        self._closing.set()
        with contextlib.suppress(RuntimeError):  # The loop has ended by itself.
            self._loop.call_soon_threadsafe(self._stop.set)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)
        _living.discard(self)

    # ---- the two threads -------------------------------------------------------------------------

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(started))
        finally:
            started.set()
            self._close_sockets()
            self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._switchboard = Switchboard(self._site, self._contacts)
        board = self._switchboard
        listener = Listener(self._site, self._sockets, board.judge, board.arrived, board.failed)
        listener.start()
        started.set()
        await self._stop.wait()
        board.stop()  # The links that go down at the end are not dialed again.
        await listener.stop()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for each in rest:
            each.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _listen_to_engine(self) -> None:
        while not self._closing.is_set():
            try:
                events = self._engine.next_events(EVENTS_WAIT_S)
            except RuntimeError:  # The engine is closed: there is nothing to connect any more.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._stop.set)
                return
            if events:
                with contextlib.suppress(RuntimeError):  # The loop has just ended.
                    self._loop.call_soon_threadsafe(self._switchboard.heard, events)

    # ---- the rest --------------------------------------------------------------------------------

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise TentError(
                f"this engine was made by process {self._pid} before the fork: make engines (and "
                "process groups) after forking, or start processes with spawn"
            )
        if self._closing.is_set():
            raise TentError("this engine is closed: make a new one")

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()

    def forget_after_fork(self) -> None:
        """In a forked child: lets go of the doors, or they would look open when the parent ends;
        and of the contacts, whose lock another thread may have held."""
        self._close_sockets()
        self._contacts = Contacts()


def _rdma_ports(settings: Settings) -> tuple[OwnPort, ...]:
    """The RDMA ports that the settings choose and that are ready. Raises SettingsError."""
    if "rdma" not in settings.transports:
        return ()
    chosen = chosen_ports(settings.rdma_devices, rdma_ports())
    named = settings.rdma_devices is not None
    for port in chosen if named else []:
        if port.trouble:
            log.warning("no RDMA rail ends on %s: %s", port.name, port.trouble)
    ready = own_ports(chosen, topology.interfaces(), named)
    if len(ready) > PORTS_MAX:
        log.warning("more than %d RDMA ports: the rest is not used", PORTS_MAX)
    return ready[:PORTS_MAX]


def _make_card(
    engine: EngineLinks,
    settings: Settings,
    name: str,
    addresses: list[Any],
    ports: tuple[OwnPort, ...],
) -> Card:
    incarnation = os.urandom(INCARNATION_BYTES)
    local = bool(ports) or any(kind in settings.transports for kind in UNIX_KINDS)
    probe_address, probe_value = engine.probe_word()
    number = next(_numbers)
    process = f"{socket.gethostname()}:{os.getpid()}" + (f".{number}" if number > 1 else "")
    shown = (name or process).encode()[:NAME_BYTES_MAX]
    return Card(
        incarnation=incarnation,
        host=topology.this_host(),
        pid=os.getpid(),
        uid=os.geteuid(),
        name=shown.decode(errors="ignore"),
        addresses=tuple(addresses),
        listed=settings.rails is not None,
        transports=settings.transports,
        local_name=f"torch_tent/{incarnation.hex()}" if local else "",
        probe_address=probe_address,
        probe_value=probe_value,
        ports=tuple(port.on_card for port in ports),
    )


def _linked(contact: Contact, kind: str) -> bool:
    return any(state.link for state in contact.rails if state.rail.kind == kind)


def _peer_stats(contact: Contact) -> dict[str, Any]:
    rails = {
        state.name: {
            "kind": state.rail.kind,
            "up": bool(state.link),
            "dialing": state.dialing is not None,
            "last": state.verdict.value if state.verdict else "",
            "reason": state.reason,
        }
        for state in list(contact.rails)
    }
    card = contact.card
    return {
        "name": card.name,
        "incarnation": card.incarnation.hex(),
        "rails": rails,
        "not_used": dict(contact.notes),
    }


def _after_fork() -> None:
    for control in list(_living):
        control.forget_after_fork()


def _at_exit() -> None:
    """No thread may be inside the engine when the interpreter goes away."""
    for control in list(_living):
        control.close()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
