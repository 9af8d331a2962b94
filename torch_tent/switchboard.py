"""Stage: control. Keeps the links to all peers: dials when the engine asks, redials what went down,
takes what comes in, and gives up peers that are gone.

Runs on the control thread; only `contacts` is shared. What always holds: a rail has at most one
link and one try at a time, each link is told to the engine once, and every loop here ends when its
link is up, its peer is lost, or the control plane stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from . import rdma_meeting
from .contact import Contact, Contacts, RailState
from .conversation import Hello, Stopped, Verdict, Welcome, close_fds
from .dialer import cma_unfit, dial
from .site import KIND_BITS, LOCAL_KINDS, UNIX_KINDS, NewLink, Site, rail_name

DIALS_MAX = 64  # at a time, over all peers
GLARE_WAIT_S = 0.25
FRESH_S = 0.05
IDLE_REDIAL_S = 60.0  # A peer that nobody has asked for is not called for ever.
SAY_AGAIN_S = 60.0

log = logging.getLogger("torch_tent")


class Switchboard:
    """All links of one engine."""

    def __init__(self, site: Site, contacts: Contacts) -> None:
        self._site = site
        self._contacts = contacts
        self._links: dict[int, tuple[Contact, RailState]] = {}
        self._dials = asyncio.Semaphore(DIALS_MAX)
        self._said: dict[str, float] = {}
        self._stopped = False

    def stop(self) -> None:
        """Starts nothing any more, whatever is still said or goes down."""
        self._stopped = True

    # ---- what the engine says --------------------------------------------------------------------

    def heard(self, events: list[tuple[str, int, int, str, str]]) -> None:
        """Takes what `Engine.next_events` returned."""
        for what, peer, number, _, reason in events:
            contact = self._contacts.of_peer(peer)
            if what == "down":
                self._down(number, reason)
            elif what == "rested":
                self._rested(number, reason)
            elif what == "said":
                log.warning("%s", reason)
            elif contact is not None and what == "dial":
                self._dial(contact, number)
            elif contact is not None and what == "lost":
                self._lost(contact, reason)

    def _dial(self, contact: Contact, mask: int) -> None:
        wanted = contact.wanted(mask)
        contact.linked_until = time.monotonic()
        for state in wanted:
            self._start(contact, state)
        if not wanted:
            self._no_rails(contact, mask)

    def _no_rails(self, contact: Contact, mask: int) -> None:
        """Tells the engine that waiting is of no use, unless the peer may call us again."""
        if any(s.ever_up or s.arriving for s in contact.rails if KIND_BITS[s.rail.kind] & mask):
            return
        kinds = "/".join(kind for kind, bit in KIND_BITS.items() if bit & mask) or "such"
        notes = "; ".join(f"{kind}: {why}" for kind, why in contact.notes.items())
        text = f"no {kinds} rail to {contact.card.name} is possible ({notes or 'no address'})"
        self._say(f"none {contact.card.name} {mask}", text)
        self._site.engine.no_rails(contact.peer, mask, text)

    def _down(self, link: int, reason: str) -> None:
        contact, state = self._links.pop(link, (None, None))
        if contact is None or state is None or state.link != link:
            return
        now = time.monotonic()
        state.went_down(now, reason)
        contact.linked_until = now
        log.info("link down: %s to %s: %s", state.name, contact.card.name, reason)
        if contact.lost:
            return
        self._start(contact, state)
        if not contact.up:  # Rails that never worked are waited for patiently: not now.
            for other in contact.rails:
                if other.wanted and not other.ever_up and other.trying_since is None:
                    self._stop_dialing(other)
                    other.backoff_s = 0.0
                    self._start(contact, other)

    def _rested(self, link: int, reason: str) -> None:
        """A link that carried nothing was closed, here or by the peer. The rail is as good as
        before: it is dialed when the engine asks for it, and at once."""
        contact, state = self._links.pop(link, (None, None))
        if contact is None or state is None or state.link != link:
            return
        now = time.monotonic()
        state.went_down(now, reason)
        state.backoff_s = 0.0
        contact.linked_until = now
        log.debug("link at rest: %s to %s", state.name, contact.card.name)

    def _lost(self, contact: Contact, reason: str) -> None:
        log.info("peer lost: %s: %s", contact.card.name, reason)
        self._contacts.drop(self._site, contact)
        for state in contact.rails:
            self._stop_dialing(state)
            self._links.pop(state.link, None)

    def _lose(self, contact: Contact, reason: str) -> None:
        """Gives a peer up; the engine confirms with a "lost" event, which is not waited for."""
        contact.lost = True
        with contextlib.suppress(RuntimeError):  # The engine may be closed.
            self._site.engine.lose_peer(contact.peer, reason)
        self._lost(contact, reason)

    # ---- dialing ---------------------------------------------------------------------------------

    def _start(self, contact: Contact, state: RailState) -> None:
        if self._stopped or state.link or state.arriving or state.dialing is not None:
            return
        if not state.can_dial:
            return
        state.wanted = True
        loop = asyncio.get_running_loop()
        state.dialing = loop.create_task(self._keep_dialing(contact, state))
        state.dialing.add_done_callback(lambda ended: self._ended(state, ended))

    def _stop_dialing(self, state: RailState) -> None:
        if state.dialing is not None and state.dialing is not asyncio.current_task():
            state.dialing.cancel()
            state.dialing = None

    def _ended(self, state: RailState, ended: asyncio.Task[None]) -> None:
        if state.dialing is ended:
            state.dialing = None
        if not ended.cancelled() and ended.exception() is not None:
            log.error("dialing %s failed unexpectedly", state.name, exc_info=ended.exception())

    async def _keep_dialing(self, contact: Contact, state: RailState) -> None:
        """Tries one rail until it is up, or nothing can come of it."""
        while not contact.lost and not state.link:
            await asyncio.sleep(state.pause_s() if state.backoff_s else 0)
            try:
                async with self._dials:
                    state.trying_since = time.monotonic()
                    link = await dial(self._site, contact, state)
                self._connected(contact, state, link)
            except Stopped as stop:
                state.trying_since = None
                if await self._tried(contact, state, stop):
                    return
            finally:
                state.trying_since = None

    async def _tried(self, contact: Contact, state: RailState, stop: Stopped) -> bool:
        """What a failed try means; true when there is no use in another."""
        log.debug("%s to %s: %s", state.name, contact.card.name, stop.reason)
        if stop.verdict is Verdict.GLARE:
            # Theirs counts, for a while; where theirs cannot come through, ours must.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(state.settled.wait(), GLARE_WAIT_S)
            state.insist = True
            return False
        state.failed(stop, urgent=not contact.up)
        if stop.verdict is Verdict.LOST:
            self._lose(contact, stop.reason)
            return True
        if stop.verdict is Verdict.UNFIT:
            self._unfit(contact, state.rail.kind, stop.reason)
        if stop.verdict is Verdict.NO_END and not state.ever_up:
            own = state.rail.own
            self._say(f"no end {own} {stop.reason}", f"no RDMA rail ends on {own}: {stop.reason}")
        if stop.verdict is Verdict.DENIED:
            text = f"{contact.card.name} refuses to connect ({state.name}): {stop.reason}"
            self._say(f"denied {contact.card.name}", text)
        why = contact.hopeless()
        if why:
            self._lose(contact, why)
            return True
        near = [other for other in contact.rails if other.rail.kind in LOCAL_KINDS]
        if state in near and not contact.up and all(other.verdict for other in near):
            self._fall_back(contact)
        idle = time.monotonic() - contact.linked_until
        return stop.verdict is Verdict.UNFIT or (idle > IDLE_REDIAL_S and not contact.up)

    def _fall_back(self, contact: Contact) -> None:
        """Nothing within the host works at the moment: try the network."""
        for state in contact.rails:
            if state.rail.kind not in UNIX_KINDS:
                self._start(contact, state)

    def _unfit(self, contact: Contact, kind: str, reason: str) -> None:
        contact.notes[kind] = reason
        text = f"{kind} is not used with {contact.card.name}: {reason}"
        if kind == "cma" and "shm" in contact.kinds:
            text += "; memory that is not from tent.empty takes one more copy"
        self._say(f"unfit {kind} {reason}", text)

    # ---- links -----------------------------------------------------------------------------------

    def _connected(self, contact: Contact, state: RailState, new: NewLink) -> None:
        """Hands a link to the engine."""
        if contact.lost or new.link in self._links:
            self._drop(new)
            return
        contact.their_session = contact.their_session or new.their_session
        if contact.their_session != new.their_session:
            self._drop(new)
            self._lose(contact, "the peer gave this connection up, and began a new one")
            return
        if state.link:
            self._links.pop(state.link, None)
            self._site.engine.close_link(state.link, "the peer has connected this rail anew")
        now = time.monotonic()
        contact.linked_until = now
        state.name = new.name
        state.went_up(new.link, now)
        self._links[new.link] = (contact, state)
        hint = state.rail.rate_hint
        try:
            self._site.engine.add_link(
                contact.peer, new.link, new.kind, new.name, new.fds, new.dialed, new.pid, hint
            )
        except RuntimeError as error:
            self._links.pop(new.link, None)
            state.went_down(now, str(error))
            state.failed(Stopped(Verdict.SILENT, str(error)), urgent=False)
            log.info("the engine does not take %s: %s", new.name, error)
        else:
            log.debug("link up: %s to %s", new.name, contact.card.name)

    def _drop(self, new: NewLink) -> None:
        close_fds(new.fds)
        if new.kind == "rdma":
            rdma_meeting.drop(self._site, new.link)

    # ---- what comes in ---------------------------------------------------------------------------

    def judge(self, hello: Hello, pid: int) -> Welcome:
        """Whether a dialer that has proved itself gets its link. Raises Stopped."""
        if hello.kind not in self._site.settings.transports:
            allowed = ", ".join(self._site.settings.transports)
            raise Stopped(Verdict.UNFIT, f"it uses only {allowed} (TENT_TRANSPORTS)")
        if hello.link in self._links:
            raise Stopped(Verdict.SILENT, "a link of this number exists")
        contact = self._session(hello)
        state = contact.rail_for(hello.kind, hello.target, hello.source, _rail_of(hello))
        if self._glares(hello, state):
            raise Stopped(Verdict.GLARE, "it dials this rail itself")
        unfit = ""
        if hello.kind == "cma":
            card = hello.card
            unfit = cma_unfit(self._site, pid, card.probe_address, card.probe_value)
        endpoint = b""
        if hello.kind == "rdma":
            endpoint = rdma_meeting.open_end(self._site, hello.link, hello.target)
        if unfit:
            self._unfit(contact, "cma", unfit)
        else:
            self._stop_dialing(state)
        contact.their_session = hello.session
        state.arriving = not unfit
        return Welcome(b"", contact.session, unfit, endpoint)

    def _session(self, hello: Hello) -> Contact:
        """The contact whose session a dialer belongs to, or begins."""
        contact = self._contacts.find(hello.card.incarnation)
        if contact is not None and not self._alive(contact):
            self._lost(contact, "the engine has given it up")  # Its event is still on the way.
            contact = None
        current = contact.session if contact is not None else b""
        if hello.peer_session and hello.peer_session != current:
            raise Stopped(Verdict.LOST, "the peer has given this connection up")
        if contact is not None and contact.their_session not in (b"", hello.session):
            self._lose(contact, "the peer gave this connection up, and began a new one")
        try:
            return self._contacts.find_or_add(self._site, hello.card, called_us=True)
        except RuntimeError as error:
            raise Stopped(Verdict.SILENT, f"the engine is closing: {error}") from None

    def _alive(self, contact: Contact) -> bool:
        try:
            return self._site.engine.alive(contact.peer)
        except RuntimeError:  # The engine is closed, and all its peers with it.
            return False

    def _glares(self, hello: Hello, state: RailState) -> bool:
        """Both sides dial one rail at once: whose connection counts? Both must find the same."""
        mine, theirs = self._site.card.incarnation, hello.card.incarnation
        if state.arriving:
            return True
        trying = state.trying_since is not None
        if trying and state.insist:
            return not hello.insist or mine < theirs
        if hello.insist:
            return False
        if state.link:
            return state.link != hello.replaces
        # A try of ours that takes long may never come through, and theirs has.
        fresh = trying and time.monotonic() - (state.trying_since or 0.0) < FRESH_S
        return fresh and mine < theirs

    def arrived(self, hello: Hello, new: NewLink) -> None:
        """A dialer's link is complete."""
        contact, state = self._of(hello)
        if contact is None or state is None:
            self._drop(new)
            return
        state.arriving = False
        self._connected(contact, state, new)

    def failed(self, hello: Hello | None, where: str, stop: Stopped) -> None:
        """A dialer's link came to nothing; `hello` is None when it had not even proved itself."""
        if stop.verdict is Verdict.DENIED:
            self._say(f"stranger {where}", f"a connection from {where} is refused: {stop.reason}")
        if hello is None:
            log.debug("a connection from %s came to nothing: %s", where, stop.reason)
            return
        contact, state = self._of(hello)
        if contact is None or state is None:
            return
        if stop.verdict is Verdict.UNFIT:
            self._unfit(contact, hello.kind, stop.reason)
        state.arriving = False
        if state.wanted and not contact.lost:
            self._start(contact, state)

    def _of(self, hello: Hello) -> tuple[Contact | None, RailState | None]:
        contact = self._contacts.find(hello.card.incarnation)
        if contact is None or contact.their_session != hello.session:
            return None, None
        name = _rail_of(hello)
        return contact, contact.rail_for(hello.kind, hello.target, hello.source, name)

    def _say(self, what: str, text: str) -> None:
        """A warning, but the same one only once in a while."""
        now = time.monotonic()
        if now - self._said.get(what, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            if len(self._said) > 1000:  # Strangers choose the keys.
                self._said.clear()
            self._said[what] = now
            log.warning("%s", text)


def _rail_of(hello: Hello) -> str:
    return rail_name(hello.kind, hello.target, hello.source)
