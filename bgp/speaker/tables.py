"""Decides what the speaker tells the agent and ExaBGP: the sessions, the adj-RIBs-in, what is announced.

Facts and wishes in, `Effects` out; no socket, no process, and the clock is an argument. The tables
change in place: a copy of a 10,000-path adj-RIB-in for each of 10,000 UPDATEs would cost seconds.

An adj-RIB-in outlives its session as follows (RFC 4724 §4.2, where this speaker is the receiving one):
- connection lost without a NOTIFICATION, and the peer offered graceful restart: its paths become stale
  and stay until its End-of-RIB, or `restart_time` after the loss or after the session is up again. What
  was stale already goes (consecutive restarts).
- hold timer, NOTIFICATION either way, or a peer without graceful restart: flushed at once.
- ExaBGP itself lost: we are the restarting speaker (§4.1), the network did not change, so all is kept as
  stale whatever the peer offers. The peer holds our routes meanwhile, and gets them all again on `Up`,
  with End-of-RIB only after them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from bgp.rib import Address, Announcement, Path, Prefix, SessionSpec, SessionState, SessionStatus
from bgp.speaker.exabgp_wire import (
    Announce,
    Command,
    Down,
    EndOfRib,
    Heard,
    Opened,
    Received,
    SendEndOfRib,
    Unreadable,
    Up,
    Withdraw,
)
from bgp.speaker.seam import Event, SessionChanged, SessionGone, Snapshot, Update, Wanted

STARTING = "waiting for the BGP daemon"
# A peer without graceful restart owes no End-of-RIB: after this its adj-RIB-in counts as whole.
# 10,000 paths with distinct attributes take 3 s.
WITHOUT_EOR_SECONDS = 10.0
Delta: TypeAlias = SessionChanged | SessionGone | Update
OfPeer: TypeAlias = Opened | Up | Down | Received | EndOfRib


@dataclass(slots=True)
class Session:
    """What is known of one wanted session."""

    spec: SessionSpec
    status: SessionStatus
    announce: frozenset[Announcement] = frozenset()
    paths: dict[Prefix, Path] = field(default_factory=dict)
    stale: set[Prefix] = field(default_factory=set)
    sweep_at: float | None = None  # when to stop waiting for the peer's End-of-RIB
    eors_due: int = 0  # End-of-RIBs given to ExaBGP and not yet reported as sent
    graceful: bool = False  # the last OPEN had our family in its graceful-restart capability
    forwarding_lost: bool = False  # the last OPEN said: restarted, and forwarding did not survive it
    peer_lost: bool = False  # the stale paths are stale because the peer's connection was lost
    going: bool = False  # no longer wanted; agents are told that it is gone once it is
    in_force: bool = False  # ExaBGP has this very spec; what it says of an older one is not about us
    why: tuple[int, int] | None = None  # the code of the NOTIFICATION in status.reason

    @property
    def up(self) -> bool:
        return self.status.state is SessionState.ESTABLISHED


@dataclass(slots=True)
class Effects:
    """What follows: deltas for the agents, commands for ExaBGP, both in order."""

    deltas: list[Delta] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    paths: dict[Address, dict[Prefix, Path | None]] = field(default_factory=dict)  # None: withdrawn

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
        )

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
            self._want_session(spec, _outgoing(wanted, peer), effects, now)
        return effects

    def _want_session(
        self, spec: SessionSpec, announce: frozenset[Announcement], effects: Effects, now: float
    ) -> None:
        session = self.sessions.get(spec.peer)
        if session is None or session.spec != spec:
            if session is not None:
                self._withdraw(session, effects)
                self._drop(session, list(session.paths), effects)
            session = Session(spec, SessionStatus(SessionState.CONNECT, now, STARTING), announce)
            self.sessions[spec.peer] = session
            effects.deltas.append(SessionChanged(spec.peer, session.status))
            return
        session.going = False
        if session.announce != announce:
            before, session.announce = session.announce, announce
            if session.up and session.in_force:
                effects.commands += _difference(spec.peer, before, announce)

    def _withdraw(self, session: Session, effects: Effects) -> None:
        # ExaBGP sends no Cease when a session is removed, so a peer with graceful restart would hold
        # what we announced: withdraw it first, and know by the End-of-RIB behind it that it has left.
        peer = session.spec.peer
        if session.up and session.in_force and not session.going:
            effects.commands += _difference(peer, session.announce, frozenset())
            effects.commands.append(SendEndOfRib(peer))
            session.eors_due += 1
            self.leaving[peer] = session.eors_due
        session.announce = frozenset()

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
                reason = "waiting for the peer to connect" if session.spec.passive else "connecting"
                self._move(session, SessionState.CONNECT, reason, effects, now)
            elif session.spec not in given and session.in_force and session.up:
                # Its `down` will be ignored, so nothing else would ever end what it had learned.
                self._drop(session, list(session.paths), effects)
                self._move(session, SessionState.CONNECT, STARTING, effects, now)
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
                case Opened() | Up() | Down() | Received() | EndOfRib():
                    self._take(message, effects, now)
        return effects

    def _take(self, message: OfPeer, effects: Effects, now: float) -> None:
        self._follow_leaving(message)
        session = self.sessions.get(message.peer)
        if session is None or not session.in_force:
            return
        match message:
            case Opened(_, graceful, forwarding_lost):
                session.graceful, session.forwarding_lost = graceful, forwarding_lost
            case Up():
                self._up(session, effects, now)
            case Down(_, reason, code):
                self._down(session, reason, code, effects, now)
            case Received(_, paths, withdrawn):
                self._receive(session, paths, withdrawn, effects)
            case EndOfRib(_, ours):
                if ours:
                    session.eors_due = max(session.eors_due - 1, 0)
                else:
                    self._whole(session, effects, now)

    def _follow_leaving(self, message: OfPeer) -> None:
        match message:
            case Down(peer):
                self.leaving.pop(peer, None)
            case EndOfRib(peer, ours=True) if peer in self.leaving:
                self.leaving[peer] -= 1
                if not self.leaving[peer]:
                    del self.leaving[peer]

    def _up(self, session: Session, effects: Effects, now: float) -> None:
        peer = session.spec.peer
        if session.peer_lost and (not session.graceful or session.forwarding_lost):
            self._drop(session, list(session.stale), effects)
        session.stale = set(session.paths)
        session.sweep_at = now + (session.spec.restart_time if session.graceful else WITHOUT_EOR_SECONDS)
        session.peer_lost, session.why, session.eors_due = False, None, 1
        self._move(session, SessionState.ESTABLISHED, "", effects, now)
        if session.announce:
            effects.commands.append(Announce(peer, session.announce))
        effects.commands.append(SendEndOfRib(peer))

    def _down(
        self, session: Session, reason: str, code: tuple[int, int] | None, effects: Effects, now: float
    ) -> None:
        if not session.up:
            self._retried(session, reason, code, effects, now)
            return
        if code is not None or not session.graceful:
            self._drop(session, list(session.paths), effects)
        else:
            self._drop(session, list(session.stale), effects)
            self._mark_stale(session, now)
            session.peer_lost = True
        session.why = code
        self._move(session, SessionState.CONNECT, reason, effects, now)

    def _retried(
        self, session: Session, reason: str, code: tuple[int, int] | None, effects: Effects, now: float
    ) -> None:
        # Each attempt ends in a `down`. A NOTIFICATION says more than the refused connects around it,
        # and the same one sent or received is no news.
        if code == session.why and (code is not None or session.status.reason == reason):
            return
        if code is None and session.why is not None:
            return
        session.why = code
        self._move(session, SessionState.CONNECT, reason, effects, now)

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
                self._mark_stale(session, now)
            session.in_force, session.why = False, None
            self._move(session, SessionState.CONNECT, reason, effects, now)
        return effects

    def expire(self, now: float) -> Effects:
        """Stop waiting for the End-of-RIBs that are overdue."""
        effects = Effects()
        for session in self.sessions.values():
            if session.sweep_at is not None and session.sweep_at <= now:
                self._whole(session, effects, now)
        return effects

    def _mark_stale(self, session: Session, now: float) -> None:
        session.stale = set(session.paths)
        session.sweep_at = now + session.spec.restart_time if session.stale else None

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
    ) -> None:
        before = session.status
        since = before.since if before.state is state else now
        lost = before.state is SessionState.ESTABLISHED and state is not before.state
        session.status = SessionStatus(state, since, reason, before.flaps + lost, synced)
        if session.status != before:
            effects.deltas.append(SessionChanged(session.spec.peer, session.status))


def _outgoing(wanted: Wanted, peer: Address) -> frozenset[Announcement]:
    # The session carries the family of its addresses only; ExaBGP would take the others and drop them.
    return frozenset(a for a in wanted.announce.get(peer, ()) if a.prefix.version == peer.version)


def _difference(
    peer: Address, before: frozenset[Announcement], after: frozenset[Announcement]
) -> list[Command]:
    kept = {announcement.prefix for announcement in after}
    gone = frozenset(a.prefix for a in before if a.prefix not in kept)
    new = after - before
    commands: list[Command] = []
    if new:
        commands.append(Announce(peer, new))
    if gone:
        commands.append(Withdraw(peer, gone))
    return commands
