"""Stage: control. What is known of one peer: its card, its session, the state of each rail to it.

Contacts are made on any thread and looked up under the registry's lock; the rails' states belong to
the control thread. Lock order: the registry's lock, then the engine's. What always holds: one
contact, and one engine peer, per session; a session that was given up never comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from dataclasses import dataclass, field

from .card import Card
from .conversation import Stopped, Verdict
from .errors import TentError
from .handshake import SESSION_BYTES
from .pairing import Rail, tcp_rails
from .rdma_pairing import rdma_rails
from .site import KIND_BITS, LOCAL_KINDS, UNIX_KINDS, Site, rail_name

RAILS_MAX = 64
BACKOFF_MIN_S = 0.01
BACKOFF_MAX_S = 0.4  # With one connect timeout on top, a repaired rail is back within a second.
BACKOFF_UNSEEN_MAX_S = 30.0  # For rails that have never worked: most of them never will.
HEALTHY_S = 1.0  # A link that lived this long has earned an immediate redial.
LOCAL_RAIL = "unix socket"


@dataclass(eq=False)
class RailState:
    """One rail to a peer, up or not. Control thread only."""

    rail: Rail
    name: str
    link: int = 0  # 0: down
    last_link: int = 0
    up_since: float = 0.0
    ever_up: bool = False
    arriving: bool = False  # the peer's connection is in its handshake
    insist: bool = False
    backoff_s: float = 0.0
    verdict: Verdict | None = None  # of the last try since the rail was up
    reason: str = ""
    wanted: bool = False  # somebody has asked for it
    dialing: asyncio.Task[None] | None = None
    trying_since: float | None = None  # a try is under way, not only the pause before the next
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # set while it is up

    @property
    def can_dial(self) -> bool:
        """Whether we know how to get there."""
        return bool(self.rail.ways) or self.rail.kind in UNIX_KINDS or self.rail.over_unix

    def went_up(self, link: int, now: float) -> None:
        """A link is in use."""
        self.link, self.up_since, self.ever_up = link, now, True
        self.insist, self.verdict, self.reason = False, None, ""
        self.settled.set()

    def went_down(self, now: float, reason: str) -> None:
        """The link is gone."""
        if now - self.up_since >= HEALTHY_S:
            self.backoff_s = 0.0
        self.link, self.last_link, self.reason = 0, self.link, reason
        self.settled.clear()

    def failed(self, stop: Stopped, urgent: bool) -> None:
        """A try has failed: the next one waits longer, but never long where it is urgent."""
        self.verdict, self.reason = stop.verdict, stop.reason
        most = BACKOFF_MAX_S if self.ever_up or urgent else BACKOFF_UNSEEN_MAX_S
        self.backoff_s = min(max(2 * self.backoff_s, BACKOFF_MIN_S), most)

    def pause_s(self) -> float:
        """How long to wait before the next try; uneven, so that two dialers fall out of step."""
        return self.backoff_s * random.uniform(0.8, 1.2)


class Contact:
    """One session with one incarnation of a peer."""

    def __init__(self, site: Site, card: Card) -> None:
        self.card = card
        self.peer = -1  # until the registry has told the engine
        self.lost = False
        self.session = os.urandom(SESSION_BYTES)
        self.their_session = b""  # empty: no handshake has succeeded yet
        self.notes: dict[str, str] = {}  # per kind: why it is not used
        self.linked_until = 0.0  # when a link was last seen
        self.kinds = tuple(k for k in site.settings.transports if k in card.transports)
        same_network = card.host.same_network(site.card.host)
        self.local = same_network and bool(card.local_name)
        self.rails: list[RailState] = []
        for kind in UNIX_KINDS:
            if kind in self.kinds and self.local:
                self.rails.append(RailState(Rail(kind), kind))
        listed = site.settings.rails is not None
        network = tcp_rails(site.ends, listed, card, same_network)
        if "rdma" in self.kinds:
            ways = tuple(way for rail in network for way in rail.ways)
            same_host = card.host.boot_id == site.card.host.boot_id
            for rail in rdma_rails(site.ports, card, same_host, ways, self.local):
                self.rails.append(RailState(rail, rail_name("rdma", rail.own, rail.theirs)))
        if "tcp" in self.kinds:
            for rail in network:
                self.rails.append(RailState(rail, _name(rail)))
        for kind in UNIX_KINDS:
            why = _unfit(site, card, kind)
            if why:
                self.notes[kind] = why
        why = _unfit_rdma(site, card)
        if why:
            self.notes["rdma"] = why

    @property
    def up(self) -> bool:
        """Whether any link is in use, or on its way in."""
        return any(state.link or state.arriving for state in self.rails)

    def wanted(self, mask: int) -> list[RailState]:
        """The rails to dial for transfers that may use the kinds of `mask`: those within the host,
        and only where there are none the others. The rail between GPUs is asked for by itself."""
        allowed = [s for s in self.rails if s.can_dial and KIND_BITS[s.rail.kind] & mask]
        if mask == KIND_BITS["cuda_ipc"]:
            return [s for s in allowed if s.verdict is not Verdict.UNFIT]
        allowed = [s for s in allowed if s.rail.kind != "cuda_ipc"]
        near = [s for s in allowed if s.rail.kind in LOCAL_KINDS]
        near = [s for s in near if s.verdict is not Verdict.UNFIT]
        return near or [s for s in allowed if s.rail.kind not in LOCAL_KINDS]

    def rail_for(self, kind: str, own: str, theirs: str, name: str) -> RailState:
        """The rail that a connection from the peer belongs to; a new one if it is none of ours.

        Raises Stopped when the peer has brought too many.
        """
        for state in self.rails:
            if state.rail.kind != kind:
                continue
            hosts = {(way.source.host, way.target.host) for way in state.rail.ways}
            if kind == "rdma":
                hosts = {(state.rail.own, state.rail.theirs)}
            if kind in UNIX_KINDS or (own, theirs) in hosts or state.name == name:
                return state
        if len(self.rails) >= RAILS_MAX:
            raise Stopped(Verdict.UNFIT, f"there are {RAILS_MAX} rails already")
        self.rails.append(RailState(Rail(kind), name))
        return self.rails[-1]

    def hopeless(self) -> str:
        """Why this peer can never be reached again, "" while it may be.

        One refusal within the host tells everything: its Unix socket lives as long as its engine.
        Over the network all addresses must refuse, of those that have worked if any has.
        """
        if self.up:
            return ""
        near = [s for s in self.rails if s.rail.kind in UNIX_KINDS or s.rail.over_unix]
        tried = [s for s in near if s.verdict]
        for state in tried:
            if state.verdict in (Verdict.GONE, Verdict.DENIED):
                return _lament([state])
        network = [s for s in self.rails if s.can_dial and s not in near]
        network = [s for s in network if s.ever_up] or network
        known = [s for s in network if s.verdict not in (Verdict.NO_ROUTE, Verdict.NO_END)]
        final = (Verdict.GONE, Verdict.DENIED, Verdict.UNFIT)
        if known and all(state.verdict in final for state in known):
            return _lament(known)
        if not network and tried and all(s.verdict is Verdict.UNFIT for s in self.rails):
            return _lament(tried)
        return ""


def _unfit(site: Site, card: Card, kind: str) -> str:
    """Why a kind of rail within the host cannot lead to this peer, "" when it may."""
    if kind not in site.settings.transports:
        return "not in this engine's TENT_TRANSPORTS"
    if kind not in card.transports:
        return "not in the peer's TENT_TRANSPORTS"
    if card.host.boot_id != site.card.host.boot_id:
        return "the peer is on another host"
    return "" if card.host.same_network(site.card.host) else "another network namespace"


def _unfit_rdma(site: Site, card: Card) -> str:
    """Why no RDMA rail can lead to this peer, "" when one may."""
    if "rdma" not in site.settings.transports:
        return "not in this engine's TENT_TRANSPORTS"
    if "rdma" not in card.transports:
        return "not in the peer's TENT_TRANSPORTS"
    if not site.ports:
        return "this host has no RDMA port that is ready: see `doctor`"
    if not card.ports:
        return "the peer's host has no RDMA port that is ready"
    layers = {own.port.link_layer for own in site.ports} & {port.link_layer for port in card.ports}
    return "" if layers else "one end is InfiniBand and the other Ethernet"


def _name(rail: Rail) -> str:
    return f"tcp {rail.ways[0].source.host}>{rail.ways[0].target.host}"


def _lament(states: list[RailState]) -> str:
    """The reason in words: a refusal with a reason tells more than a closed port."""
    for verdict in (Verdict.DENIED, Verdict.UNFIT):
        for state in states:
            if state.verdict is verdict:
                return f"cannot connect ({state.name}): {state.reason}"
    for state in states:
        if state.reason.startswith("restarted"):
            return f"{state.reason} ({state.name})"
    names = ", ".join(s.name if s.rail.ways else LOCAL_RAIL for s in states)
    return f"no process listens at its addresses any more ({names}): it has ended"


class Contacts:
    """All living contacts, by incarnation and by engine peer. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_incarnation: dict[bytes, Contact] = {}
        self._closed: dict[bytes, int] = {}  # engine peers that will never come back
        self._by_peer: dict[int, Contact] = {}
        self._cards: dict[int, Card] = {}

    def find(self, incarnation: bytes) -> Contact | None:
        """The living contact with this incarnation."""
        with self._lock:
            return self._by_incarnation.get(incarnation)

    def of_peer(self, peer: int) -> Contact | None:
        """The contact that an engine peer belongs to, also while it is being lost."""
        with self._lock:
            return self._by_peer.get(peer)

    def card_of(self, peer: int) -> Card | None:
        """The card of a peer, alive or lost."""
        with self._lock:
            return self._cards.get(peer)

    def names(self) -> dict[int, str]:
        """What people call each peer, alive or lost."""
        with self._lock:
            return {peer: card.name for peer, card in self._cards.items()}

    def all(self) -> list[Contact]:
        """The contacts at this moment."""
        with self._lock:
            return list(self._by_incarnation.values())

    def peer(self, site: Site, card: Card) -> int:
        """The engine's peer with this card: a living one, else one that has closed, whose last
        messages may still be received; else that of a new session. Raises as find_or_add."""
        with self._lock:
            contact = self._by_incarnation.get(card.incarnation)
            if contact is not None:
                self._note_closed(site, contact)
            closed = self._closed.get(card.incarnation)
            return self.find_or_add(site, card).peer if closed is None else closed

    def find_or_add(self, site: Site, card: Card, called_us: bool = False) -> Contact:
        """The living contact with the card's incarnation; a new session if the last was lost.

        Raises TentError where no rail can lead there, unless the peer has found one to us.
        """
        with self._lock:
            contact = self._by_incarnation.get(card.incarnation)
            if contact is not None and not contact.lost and site.engine.alive(contact.peer):
                return contact
            contact = Contact(site, card)
            if not contact.rails and not called_us:
                raise TentError(_no_rails(site, card))
            contact.peer = site.engine.add_peer(card.name)
            self._by_incarnation[card.incarnation] = contact
            self._by_peer[contact.peer] = contact
            self._cards[contact.peer] = card
            return contact

    def _note_closed(self, site: Site, contact: Contact) -> None:
        with contextlib.suppress(RuntimeError):  # Our engine may be closed.
            if site.engine.closed(contact.peer):
                self._closed[contact.card.incarnation] = contact.peer

    def drop(self, site: Site, contact: Contact) -> None:
        """Forgets a contact whose session has ended."""
        with self._lock:
            self._note_closed(site, contact)
            contact.lost = True
            self._by_peer.pop(contact.peer, None)
            if self._by_incarnation.get(contact.card.incarnation) is contact:
                del self._by_incarnation[contact.card.incarnation]


def _no_rails(site: Site, card: Card) -> str:
    """Why no rail can lead to this peer, and what to do."""
    kinds = [kind for kind in site.settings.transports if kind in card.transports]
    if not kinds:
        ours, theirs = ", ".join(site.settings.transports), ", ".join(card.transports)
        return f"no transport in common with {card.name}: {ours} here, {theirs} there"
    if card.host.same_network(site.card.host):
        return f"no rail leads to {card.name} on this host by {', '.join(kinds)}: list TENT_RAILS"
    if site.settings.secret is None:
        return (
            f"{card.name} is on another host (or in another network namespace), and without a "
            "secret engines talk within one host only: set the same TENT_SECRET for both"
        )
    here = ", ".join(a.host for end in site.ends for a in end.addresses)
    there = ", ".join(address.host for address in card.addresses)
    return (
        f"no address of {card.name} ({there or 'it lists none'}) can be reached from those of this "
        f"engine ({here or 'none'}): check that both have a secret, and TENT_RAILS"
    )
