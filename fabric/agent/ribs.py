"""Fold what the speaker says into one immutable picture of sessions and adj-RIB-in. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bgp.rib import Address, AdjRibIn, SessionState, SessionStatus, Traffic
from bgp.speaker.seam import Counted, Event, SessionChanged, SessionGone, Snapshot, Update, Wanted

V = TypeVar("V")

AWAY = "the speaker does not answer"


@dataclass(frozen=True)
class Ribs:
    """What BGP has told this node.

    `settled` says that every session has had its chance to be heard since the speaker (re)connected;
    until then a missing path means "not heard yet", and no route may be removed for the lack of one.
    It is given up waiting for at `settle_by` (seconds on the monotonic clock).
    """

    connected: bool = False
    settled: bool = False
    settle_by: float = 0.0
    sessions: Mapping[Address, SessionStatus] = field(default_factory=dict)
    adj_rib_in: Mapping[Address, AdjRibIn] = field(default_factory=dict)
    traffic: Mapping[Address, Traffic] = field(default_factory=dict)


def fold(ribs: Ribs, event: Event, now: float, patience: float) -> Ribs:
    """Return the picture after `event`; `patience` is how long in seconds a silent peer may hold deletions."""
    match event:
        case Snapshot(sessions=sessions, adj_rib_in=adj_rib_in, traffic=traffic):
            tables = {peer: {path.prefix: path for path in paths} for peer, paths in adj_rib_in.items()}
            return Ribs(True, False, now + patience, dict(sessions), tables, dict(traffic))
        case Counted(peer, counts):
            return replace(ribs, traffic={**ribs.traffic, peer: counts})
        case SessionChanged(peer, status):
            return replace(ribs, sessions={**ribs.sessions, peer: status})
        case SessionGone(peer):
            return replace(
                ribs,
                sessions=_less(ribs.sessions, peer),
                adj_rib_in=_less(ribs.adj_rib_in, peer),
                traffic=_less(ribs.traffic, peer),
            )
        case Update(peer, paths, withdrawn):
            table = dict(ribs.adj_rib_in.get(peer, {}))
            for prefix in withdrawn:
                table.pop(prefix, None)
            table.update({path.prefix: path for path in paths})
            return replace(ribs, adj_rib_in={**ribs.adj_rib_in, peer: table})


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
    return replace(ribs, settled=True) if heard or now >= ribs.settle_by else ribs


def _less(mapping: Mapping[Address, V], key: Address) -> dict[Address, V]:
    return {k: v for k, v in mapping.items() if k != key}
