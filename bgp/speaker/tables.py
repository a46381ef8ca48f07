"""Decides what the speaker tells the agent and ExaBGP: the sessions, the adj-RIBs-in, what is announced.

Facts and wishes in, `Effects` out; no socket, no process, and the clock is an argument. The tables
change in place: a copy of a 10,000-path adj-RIB-in for each of 10,000 UPDATEs would cost seconds.

An adj-RIB-in outlives its session as follows (RFC 4724 §4.2, where this speaker is the receiving one):
- connection lost without a NOTIFICATION, and the peer offered graceful restart: its paths become stale
  and stay until its End-of-RIB, but no longer than it said that its restart may take, nor than our own
  `restart_time` after the session is up again. What was stale already goes (consecutive restarts).
- hold timer, NOTIFICATION either way, or a peer without graceful restart: flushed at once.
- ExaBGP itself lost: we are the restarting speaker (§4.1), the network did not change, so all is kept as
  stale whatever the peer offers. The peer holds our routes meanwhile, and gets them all again on `Up`,
  with End-of-RIB only after them.
All of this is by address family, since that is how graceful restart is offered.

A peer that sends more prefixes than its limit, whatever becomes of them, is closed (Cease 6/1), flushed, and left
out of what ExaBGP runs until it is reset, its limit is raised, or IDLE_SECONDS have passed. Stale paths do not
count: so at most twice the limit is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from bgp.rib import (
    Address,
    Announcement,
    Notification,
    Path,
    Prefix,
    SessionSpec,
    SessionState,
    SessionStatus,
    Traffic,
)
from bgp.speaker.exabgp_wire import (
    Announce,
    Command,
    Down,
    EndOfRib,
    Heard,
    Opened,
    Received,
    SendEndOfRib,
    Sent,
    Teardown,
    Unreadable,
    Up,
    Withdraw,
    named,
)
from bgp.speaker.seam import Counted, Event, Reset, SessionChanged, SessionGone, Snapshot, Update, Wanted

STARTING = "waiting for the BGP daemon"
# A peer without graceful restart owes no End-of-RIB: after this its adj-RIB-in counts as whole.
# 10,000 paths with distinct attributes take 3 s.
WITHOUT_EOR_SECONDS = 10.0
IDLE_SECONDS = 900.0
NOTHING = Traffic()
CEASE, MAXIMUM_PREFIXES, COLLISION = 6, 1, (6, 7)  # RFC 4486 §3
Code: TypeAlias = tuple[int, int]  # of a NOTIFICATION, and its subcode
Delta: TypeAlias = SessionChanged | SessionGone | Update
OfPeer: TypeAlias = Opened | Up | Down | Received | EndOfRib | Sent


@dataclass(slots=True)
class Session:
    """What is known of one wanted session."""

    spec: SessionSpec
    status: SessionStatus
    announce: frozenset[Announcement] = frozenset()
    limit: int = 0  # prefixes; 0 for none
    # Announced to ExaBGP, which sends them again at each `up`.
    given: set[Prefix] = field(default_factory=set)
    paths: dict[Prefix, Path] = field(default_factory=dict)
    stale: set[Prefix] = field(default_factory=set)
    awaited: set[int] = field(default_factory=set)  # families whose End-of-RIB the peer owes
    sweep_at: float | None = None  # when to stop waiting for it
    eors_due: int = 0  # End-of-RIBs given to ExaBGP and not yet reported as sent
    opened: Opened | None = None  # the peer's last OPEN
    peer_lost: bool = False  # the stale paths are stale because the peer's connection was lost
    going: bool = False  # no longer wanted; agents are told that it is gone once it is
    in_force: bool = False  # ExaBGP has this very spec; what it says of an older one is not about us
    ending: bool = False  # told to end: what ExaBGP says until it has is about what is flushed already
    why: Code | None = None  # the code of the NOTIFICATION in status.reason
    updates_in: int = 0
    updates_out: int = 0
    told: Traffic = NOTHING  # what the agents know of the two

    @property
    def up(self) -> bool:
        return self.status.state is SessionState.ESTABLISHED

    @property
    def idle(self) -> bool:
        """Closed for its number of prefixes, and not to be tried yet."""
        return bool(self.status.idle_until)

    @property
    def families(self) -> frozenset[int]:
        """The IP versions that both sides carry."""
        return self.opened.families & self.spec.families if self.opened else frozenset()

    @property
    def graceful(self) -> frozenset[int]:
        """Those that the peer keeps over a restart."""
        return self.opened.graceful & self.families if self.opened else frozenset()

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.updates_in, self.updates_out)


@dataclass(slots=True)
class Effects:
    """What follows: deltas for the agents, commands for ExaBGP, both in order."""

    deltas: list[Delta] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    paths: dict[Address, dict[Prefix, Path | None]] = field(default_factory=dict)  # None: withdrawn
    reconfigure: bool = False  # ExaBGP should have other sessions than before

    def path(self, peer: Address, prefix: Prefix, path: Path | None) -> None:
        self.paths.setdefault(peer, {})[prefix] = path

    def events(self) -> list[Event]:
        """One Update a peer with the last word on each prefix, then the rest.

        The Updates come first: `synced` must not be heard before the paths it speaks of.
        """
        return [*(_update(peer, changes) for peer, changes in self.paths.items()), *self.deltas]


def _update(peer: Address, changes: dict[Prefix, Path | None]) -> Update:
    paths = tuple(path for path in changes.values() if path is not None)
    return Update(peer, paths, tuple(prefix for prefix, path in changes.items() if path is None))


class Tables:
    """All of the speaker's state. `now` is in seconds of the Unix epoch everywhere."""

    def __init__(self) -> None:
        self.wanted: Wanted | None = None  # None until an agent has spoken: then nothing may start
        self.sessions: dict[Address, Session] = {}
        # Peers being removed, and how many End-of-RIBs must leave until their withdrawals have.
        self.leaving: dict[Address, int] = {}

    def snapshot(self) -> Snapshot:
        return Snapshot(
            sessions={peer: session.status for peer, session in self.sessions.items()},
            adj_rib_in={
                peer: frozenset(session.paths.values())
                for peer, session in self.sessions.items()
                if session.paths
            },
            wanted=self.wanted or Wanted(),
            traffic={peer: session.traffic for peer, session in self.sessions.items()},
        )

    def counted(self) -> list[Counted]:
        """Return the counts of UPDATEs that changed since they were told."""
        news = []
        for peer, session in self.sessions.items():
            if session.told != session.traffic:
                session.told = session.traffic
                news.append(Counted(peer, session.told))
        return news

    def idle(self) -> frozenset[SessionSpec]:
        """Sessions that are wanted and must not be run."""
        return frozenset(session.spec for session in self.sessions.values() if session.idle)

    def want(self, wanted: Wanted, now: float) -> Effects:
        """Take the whole desired state; sessions that stay as they are only get the difference.

        One that is no longer wanted goes on with nothing to announce, until `gone` says otherwise: so it
        may be wanted again meanwhile, and nothing is lost.
        """
        effects = Effects()
        self.wanted = wanted
        specs = {spec.peer: spec for spec in wanted.sessions}
        for peer, session in self.sessions.items():
            if peer not in specs and not session.going:
                self._withdraw(session, effects)
                session.going = True
        for peer, spec in specs.items():
            session = self._session_of(spec, effects, now)
            self._limit(session, wanted.max_prefixes.get(peer, 0), effects, now)
            before, session.announce = session.announce, _outgoing(wanted, spec)
            if session.up and session.in_force and session.announce != before:
                self._send(session, before, effects)
        return effects

    def _session_of(self, spec: SessionSpec, effects: Effects, now: float) -> Session:
        session = self.sessions.get(spec.peer)
        if session is None or session.spec != spec:
            if session is not None:
                self._withdraw(session, effects)
                self._drop(session, list(session.paths), effects)
            given = session.given if session else set()  # ExaBGP may go on with the same table
            session = Session(spec, SessionStatus(SessionState.CONNECT, now, STARTING), given=given)
            self.sessions[spec.peer] = session
            effects.deltas.append(SessionChanged(spec.peer, session.status))
        session.going = False
        return session

    def _limit(self, session: Session, limit: int, effects: Effects, now: float) -> None:
        before, session.limit = session.limit, limit
        if session.idle and (not limit or limit > before):
            self._retry(session, effects, now)
        self._hold_to_limit(session, effects, now)

    def _withdraw(self, session: Session, effects: Effects) -> None:
        # ExaBGP reports no withdrawal as sent, but what waits behind them: an End-of-RIB.
        peer = session.spec.peer
        before, session.announce = session.announce, frozenset()
        if session.up and session.in_force and not session.going:
            self._send(session, before, effects)
            self._end_of_ribs(session, list(session.families)[:1], effects)
            if session.eors_due:
                self.leaving[peer] = session.eors_due

    def _send(self, session: Session, before: frozenset[Announcement], effects: Effects) -> None:
        """Send what is to be announced, less what was `before`, and withdraw all else that ExaBGP has."""
        peer, families = session.spec.peer, session.families
        new = frozenset(a for a in session.announce - before if a.prefix.version in families)
        gone = session.given - {a.prefix for a in session.announce}
        session.given = (session.given | {a.prefix for a in new}) - gone
        if new:
            effects.commands.append(Announce(peer, new))
        if gone:
            effects.commands.append(Withdraw(peer, frozenset(gone)))

    def _end_of_ribs(self, session: Session, families: Iterable[int], effects: Effects) -> None:
        for family in sorted(families):
            effects.commands.append(SendEndOfRib(session.spec.peer, family))
            session.eors_due += 1

    def reset(self, reset: Reset, now: float) -> Effects:
        """End a session at once, with nothing kept, or let one that idles be tried again."""
        effects = Effects()
        session = self.sessions.get(reset.peer)
        if session is not None and session.idle:
            self._retry(session, effects, now)
        elif session is not None and session.up and session.in_force:
            last = self._close(session, reset.subcode, effects, now)
            reason = named(CEASE, reset.subcode, sent_by_us=True)
            self._move(session, SessionState.CONNECT, reason, effects, now, last=last)
        elif session is not None and not session.up:
            # A peer that loses its power closes its connection before its carrier goes: what is kept for its restart.
            session.sweep_at = None
            self._drop(session, list(session.paths), effects)
        return effects

    def _close(self, session: Session, subcode: int, effects: Effects, now: float) -> Notification:
        effects.commands.append(Teardown(session.spec.peer, subcode))
        session.ending, session.sweep_at, session.why = True, None, (CEASE, subcode)
        self.leaving.pop(session.spec.peer, None)
        self._drop(session, list(session.paths), effects)
        return Notification(CEASE, subcode, True, now)

    def _hold_to_limit(self, session: Session, effects: Effects, now: float) -> None:
        count = len(session.paths) - len(session.stale)
        if not session.limit or count <= session.limit or not (session.up and session.in_force):
            return
        last = self._close(session, MAXIMUM_PREFIXES, effects, now)
        session.in_force, effects.reconfigure = False, True
        until = now + IDLE_SECONDS
        reason = (
            f"sent {count} prefixes and {session.limit} is the limit: {named(CEASE, 1, sent_by_us=True)}; "
            f"idle for {IDLE_SECONDS / 60:.0f} minutes, or until it is reset or its limit raised"
        )
        self._move(session, SessionState.IDLE, reason, effects, now, last=last, idle_until=until)

    def _retry(self, session: Session, effects: Effects, now: float) -> None:
        effects.reconfigure, session.why = True, None
        self._move(session, SessionState.CONNECT, STARTING, effects, now)

    def gone(self, remaining: Iterable[SessionSpec]) -> Effects:
        """ExaBGP has no session left but `remaining`: tell which of the unwanted ones are gone."""
        effects = Effects()
        left = {spec.peer for spec in remaining}
        for peer in [peer for peer, session in self.sessions.items() if session.going and peer not in left]:
            del self.sessions[peer]
            effects.deltas.append(SessionGone(peer))
        return effects

    def renewed(self, running: Iterable[SessionSpec]) -> frozenset[SessionSpec]:
        """Those of `running` that began anew here: ExaBGP, which has them up, must drop them first."""
        anew = {session.spec for session in self.sessions.values() if not session.in_force}
        return frozenset(running) & anew

    def in_force(self, specs: Iterable[SessionSpec], now: float) -> Effects:
        """ExaBGP has been given exactly `specs`; what it says of other sessions is ignored."""
        effects = Effects()
        given = set(specs)
        self.leaving.clear()
        for session in self.sessions.values():
            if session.spec in given and not session.in_force:
                session.ending = False
                reason = "waiting for the peer to connect" if session.spec.passive else "connecting"
                self._move(session, SessionState.CONNECT, reason, effects, now)
            elif session.spec not in given and session.in_force and session.up:
                # Its `down` will be ignored, so nothing else would ever end what it had learned.
                self._drop(session, list(session.paths), effects)
                self._move(session, SessionState.CONNECT, STARTING, effects, now)
            if session.spec not in given:
                session.given.clear()
            session.in_force = session.spec in given
        return effects

    def refuse(self, reasons: dict[Address, str], now: float) -> Effects:
        """These sessions cannot be given to ExaBGP, for the reason that is to be shown."""
        effects = Effects()
        for peer, reason in reasons.items():
            if (session := self.sessions.get(peer)) and not session.up:
                self._move(session, SessionState.IDLE, reason, effects, now)
        return effects

    def take(self, heard: Iterable[Heard], now: float) -> Effects:
        """Take what ExaBGP said, in order."""
        effects = Effects()
        for message in heard:
            match message:
                case Unreadable(peer=peer, withdrawn=withdrawn) if peer is not None:
                    self._take(Received(peer, (), withdrawn), effects, now)
                case Opened() | Up() | Down() | Received() | EndOfRib() | Sent():
                    self._take(message, effects, now)
        return effects

    def _take(self, message: OfPeer, effects: Effects, now: float) -> None:
        self._follow_leaving(message)
        session = self.sessions.get(message.peer)
        if session is None or not session.in_force:
            return
        if session.ending:
            session.ending = not isinstance(message, Down)
            return
        match message:
            case Opened():
                session.opened = message
            case Up():
                self._up(session, effects, now)
            case Down():
                self._down(session, message, effects, now)
            case Received(_, paths, withdrawn):
                session.updates_in += 1
                self._receive(session, paths, withdrawn, effects)
                self._hold_to_limit(session, effects, now)
            case EndOfRib(ours=True):
                session.updates_out += 1
                session.eors_due = max(session.eors_due - 1, 0)
            case EndOfRib(family=family):
                session.updates_in += 1
                self._heard_all(session, family, effects, now)
            case Sent():
                session.updates_out += 1

    def _follow_leaving(self, message: OfPeer) -> None:
        match message:
            case Down(peer):
                self.leaving.pop(peer, None)
            case EndOfRib(peer, ours=True) if peer in self.leaving:
                self.leaving[peer] -= 1
                if not self.leaving[peer]:
                    del self.leaving[peer]

    def _up(self, session: Session, effects: Effects, now: float) -> None:
        if session.peer_lost:
            kept = session.graceful - (session.opened.forwarding_lost if session.opened else frozenset())
            self._drop(session, [prefix for prefix in session.stale if prefix.version not in kept], effects)
        session.stale, session.awaited = set(session.paths), set(session.families)
        session.sweep_at = now + (session.spec.restart_time if session.graceful else WITHOUT_EOR_SECONDS)
        session.peer_lost, session.why, session.eors_due = False, None, 0
        self._move(session, SessionState.ESTABLISHED, "", effects, now)
        self._send(session, frozenset(), effects)
        self._end_of_ribs(session, session.families, effects)

    def _down(self, session: Session, down: Down, effects: Effects, now: float) -> None:
        if not session.up:
            self._retried(session, down, effects, now)
            return
        kept = session.graceful if down.code is None else frozenset()
        flushed = [p for p in session.paths if p in session.stale or p.version not in kept]
        self._drop(session, flushed, effects)
        self._mark_stale(session, now, session.opened.restart_time if session.opened else 0)
        session.peer_lost, session.why = True, down.code
        self._move(session, SessionState.CONNECT, down.reason, effects, now, last=_last(down, now))

    def _retried(self, session: Session, down: Down, effects: Effects, now: float) -> None:
        # Each attempt ends in a `down`. A NOTIFICATION says more than the refused connects around it,
        # the same one again is no news, and a collision is how two that connect at once agree.
        if down.code == COLLISION or (down.code is None and session.why is not None):
            return
        if down.code == session.why and (down.code is not None or session.status.reason == down.reason):
            return
        session.why = down.code
        self._move(session, SessionState.CONNECT, down.reason, effects, now, last=_last(down, now))

    def _receive(
        self, session: Session, paths: tuple[Path, ...], withdrawn: tuple[Prefix, ...], effects: Effects
    ) -> None:
        self._drop(session, [prefix for prefix in withdrawn if prefix in session.paths], effects)
        for path in paths:
            session.stale.discard(path.prefix)
            if session.paths.get(path.prefix) != path:
                session.paths[path.prefix] = path
                effects.path(session.spec.peer, path.prefix, path)

    def daemon_lost(self, reason: str, now: float) -> Effects:
        """ExaBGP is gone, and every session with it; what was learned stands as stale."""
        effects = Effects()
        self.leaving.clear()
        for session in self.sessions.values():
            if session.up:
                self._mark_stale(session, now, session.spec.restart_time)
            session.in_force, session.ending = False, False
            session.given.clear()
            if not session.idle:
                session.why = None
                self._move(session, SessionState.CONNECT, reason, effects, now)
        return effects

    def expire(self, now: float) -> Effects:
        """Stop waiting for the End-of-RIBs that are overdue, and try again what has idled for long enough."""
        effects = Effects()
        for session in self.sessions.values():
            if session.sweep_at is not None and session.sweep_at <= now:
                self._whole(session, effects, now)
            if session.idle and session.status.idle_until <= now:
                self._retry(session, effects, now)
        return effects

    def _mark_stale(self, session: Session, now: float, seconds: int) -> None:
        session.stale = set(session.paths)
        session.sweep_at = now + seconds if session.stale else None

    def _heard_all(self, session: Session, family: int, effects: Effects, now: float) -> None:
        session.awaited.discard(family)
        self._drop(session, [prefix for prefix in session.stale if prefix.version == family], effects)
        if not session.awaited:
            self._whole(session, effects, now)

    def _whole(self, session: Session, effects: Effects, now: float) -> None:
        session.sweep_at = None
        self._drop(session, list(session.stale), effects)
        if session.up:
            self._move(session, SessionState.ESTABLISHED, "", effects, now, synced=True)

    def _drop(self, session: Session, prefixes: list[Prefix], effects: Effects) -> None:
        for prefix in prefixes:
            del session.paths[prefix]
            session.stale.discard(prefix)
            effects.path(session.spec.peer, prefix, None)

    def _move(
        self,
        session: Session,
        state: SessionState,
        reason: str,
        effects: Effects,
        now: float,
        *,
        synced: bool = False,
        last: Notification | None = None,
        idle_until: float = 0.0,
    ) -> None:
        before = session.status
        lost = before.state is SessionState.ESTABLISHED and state is not before.state
        session.status = SessionStatus(
            state,
            since=before.since if before.state is state else now,
            reason=reason,
            flaps=before.flaps + lost,
            synced=synced,
            peer_id=session.opened.peer_id if session.opened else None,
            notification=last or before.notification,
            idle_until=idle_until,
        )
        if session.status != before:
            effects.deltas.append(SessionChanged(session.spec.peer, session.status))


def _last(down: Down, now: float) -> Notification | None:
    return Notification(*down.code, down.sent_by_us, now) if down.code else None


def _outgoing(wanted: Wanted, spec: SessionSpec) -> frozenset[Announcement]:
    """What is announced on a session: the families it carries, each with a next hop of ours if it has none.

    ExaBGP's own idea of one for IPv4 over IPv6 would be the router id.
    """
    announce = wanted.announce.get(spec.peer, frozenset())
    if all(a.prefix.version == spec.peer.version for a in announce):
        return announce  # the same object: ten thousand are not hashed again for each change
    return frozenset(
        replace(a, next_hop=spec.source)
        if a.next_hop is None and a.prefix.version != spec.peer.version
        else a
        for a in announce
        if a.prefix.version in spec.families
    )
