"""Says what a Wanted changes of the one before it, so that one path more does not cost a table of ten thousand.

Only on the socket: the agent hands down whole states, and the speaker works with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bgp.rib import Address, AdjRibOut, SessionSpec
from bgp.speaker.seam import Wanted

NOTHING: AdjRibOut = frozenset()


@dataclass(frozen=True, slots=True)
class Rewanted:
    """Follows a Wanted on the same connection: sessions and limits whole, announcements as what is `new` and `gone`."""

    sessions: frozenset[SessionSpec]
    max_prefixes: Mapping[Address, int]
    new: Mapping[Address, AdjRibOut]
    gone: Mapping[Address, AdjRibOut]


def difference(before: Wanted, after: Wanted) -> Rewanted:
    peers = before.announce.keys() | after.announce.keys()
    pairs = {peer: (before.announce.get(peer, NOTHING), after.announce.get(peer, NOTHING)) for peer in peers}
    changed = {peer: (old, new) for peer, (old, new) in pairs.items() if old is not new}
    return Rewanted(
        after.sessions,
        after.max_prefixes,
        new={peer: more for peer, (old, new) in changed.items() if (more := new - old)},
        gone={peer: less for peer, (old, new) in changed.items() if (less := old - new)},
    )


def applied(before: Wanted, change: Rewanted) -> Wanted:
    """The inverse: what is wanted after `change`; a peer to which nothing is announced may be left out."""
    announce = dict(before.announce)
    for peer in change.new.keys() | change.gone.keys():
        left = announce.get(peer, NOTHING) - change.gone.get(peer, NOTHING)
        announce[peer] = left | change.new.get(peer, NOTHING)
    return Wanted(change.sessions, {peer: out for peer, out in announce.items() if out}, change.max_prefixes)
