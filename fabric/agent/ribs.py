"""Fold what the speaker says into one immutable picture of sessions and adj-RIB-in. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bgp.rib import Address, AdjRibIn, Prefix, SessionState, SessionStatus, Traffic
from bgp.speaker.seam import Counted, Event, SessionChanged, SessionGone, Snapshot, Update, Wanted

V = TypeVar("V")

AWAY = "the speaker does not answer"


@dataclass(frozen=True)
class Ribs:
    """What BGP has told this node.

    `settled` says that every session has had its chance to be heard since the speaker (re)connected;
    until then a missing path means "not heard yet", and no route may be removed for the lack of one.
    It is given up waiting for at `settle_by` (seconds on the monotonic clock).

    A speaker that begins anew knows no paths, while its peers have forgotten nothing. So what an earlier one had told
    stands, and is passed on, until its peer's table is whole again; `remembered` are those prefixes, by peer. They
    are in `adj_rib_in` with the others.
    """

    connected: bool = False
    settled: bool = False
    settle_by: float = 0.0
    sessions: Mapping[Address, SessionStatus] = field(default_factory=dict)
    adj_rib_in: Mapping[Address, AdjRibIn] = field(default_factory=dict)
    traffic: Mapping[Address, Traffic] = field(default_factory=dict)
    remembered: Mapping[Address, frozenset[Prefix]] = field(default_factory=dict)


def fold(ribs: Ribs, event: Event, now: float, patience: float) -> Ribs:
    """Return the picture after `event`; `patience` is how long in seconds a silent peer may hold deletions."""
    match event:
        case Snapshot():
            return _begun(ribs, event, now + patience)
        case Counted(peer, counts):
            return replace(ribs, traffic={**ribs.traffic, peer: counts})
        case SessionChanged(peer, status):
            known = replace(ribs, sessions={**ribs.sessions, peer: _with_id(status, ribs.sessions.get(peer))})
            return _forgetting(known, [peer]) if status.synced else known
        case SessionGone(peer):
            return replace(
                ribs,
                sessions=_less(ribs.sessions, peer),
                adj_rib_in=_less(ribs.adj_rib_in, peer),
                traffic=_less(ribs.traffic, peer),
                remembered=_less(ribs.remembered, peer),
            )
        case Update(peer, paths, withdrawn):
            table = dict(ribs.adj_rib_in.get(peer, {}))
            for prefix in withdrawn:
                table.pop(prefix, None)
            table.update({path.prefix: path for path in paths})
            left = ribs.remembered.get(peer, frozenset()) - {path.prefix for path in paths} - {*withdrawn}
            return replace(
                ribs,
                adj_rib_in={**ribs.adj_rib_in, peer: table},
                remembered={**ribs.remembered, peer: left} if left else _less(ribs.remembered, peer),
            )


def _begun(ribs: Ribs, heard: Snapshot, settle_by: float) -> Ribs:
    tables: dict[Address, AdjRibIn] = {
        peer: {path.prefix: path for path in paths} for peer, paths in heard.adj_rib_in.items()
    }
    whole = {peer for peer, status in heard.sessions.items() if status.synced}
    old = {peer: table for peer, table in ribs.adj_rib_in.items() if table and peer not in whole}
    remembered = {peer: frozenset(table.keys() - tables.get(peer, {}).keys()) for peer, table in old.items()}
    sessions = {peer: status for peer, status in ribs.sessions.items() if peer in old}
    return Ribs(
        connected=True,
        settle_by=settle_by,
        sessions=sessions
        | {peer: _with_id(status, ribs.sessions.get(peer)) for peer, status in heard.sessions.items()},
        adj_rib_in=tables | {peer: {**table, **tables.get(peer, {})} for peer, table in old.items()},
        traffic=dict(heard.traffic),
        remembered={peer: prefixes for peer, prefixes in remembered.items() if prefixes},
    )


def _with_id(status: SessionStatus, before: SessionStatus | None) -> SessionStatus:
    """What is passed on of a peer names it by its id, which it has before it has connected again too."""
    return status if status.peer_id or not before else replace(status, peer_id=before.peer_id)


def _forgetting(ribs: Ribs, peers: Iterable[Address]) -> Ribs:
    """Return the picture without what `peers` have not said again."""
    gone = {peer: ribs.remembered[peer] for peer in peers if peer in ribs.remembered}
    if not gone:
        return ribs
    tables = {
        peer: {prefix: path for prefix, path in ribs.adj_rib_in[peer].items() if prefix not in prefixes}
        for peer, prefixes in gone.items()
    }
    left = {peer: prefixes for peer, prefixes in ribs.remembered.items() if peer not in gone}
    return replace(ribs, adj_rib_in={**ribs.adj_rib_in, **tables}, remembered=left)


def lost(ribs: Ribs, now: float) -> Ribs:
    """Return the picture after the speaker went away at `now` (Unix epoch).

    What was learned stands until it is heard anew; but none of the sessions is known to be Established any more.
    """
    away = {
        peer: replace(seen, state=SessionState.IDLE, since=now, reason=AWAY, synced=False)
        for peer, seen in ribs.sessions.items()
    }
    return replace(ribs, connected=False, settled=False, sessions=away)


def settle(ribs: Ribs, wanted: Wanted, now: float) -> Ribs:
    """Return the picture with `settled` set once every wanted session is whole, or patience has ended."""
    if ribs.settled or not ribs.connected:
        return ribs
    heard = all((status := ribs.sessions.get(s.peer)) and status.synced for s in wanted.sessions)
    if not (heard or now >= ribs.settle_by):
        return ribs
    return replace(_forgetting(ribs, tuple(ribs.remembered)), settled=True)


def _less(mapping: Mapping[Address, V], key: Address) -> dict[Address, V]:
    return {k: v for k, v in mapping.items() if k != key}
