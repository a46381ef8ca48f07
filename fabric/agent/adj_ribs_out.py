"""Decide what goes out on each session: what is this node's own, and what it passes on. Pure.

    own blocks, borrowed and node addresses ─▶ originated ┐
                                                          ├─▶ adj-RIB-out, one a session
    what is passed on (agent.routing) ────────────────────┘

Each attach decides anew what is our own; a table that comes out as it was stays the same object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from bgp import export
from bgp.export import Exported, Own
from bgp.rib import Address, Prefix
from fabric.agent.routing import Routing

NOTHING = Exported()


@dataclass(frozen=True)
class Table:
    """The adj-RIB-out of one session, `exported`, with its two parts; `shadowed` prefixes are learned, and our own."""

    originated: Exported
    passed_on: Exported
    shadowed: frozenset[Prefix]
    exported: Exported


AdjRibsOut: TypeAlias = Mapping[Address, Table]


def adj_ribs_out(routing: Routing, own: Own, known: AdjRibsOut) -> AdjRibsOut:
    """Return what goes out on each session; of `known`, the last answer, what still holds is kept."""
    shadowed = frozenset(own.routes.keys() & routing.loc_rib.best.keys())
    found = {}
    for peering in routing.peerings.peerings:
        peer = peering.spec.peer
        passed_on = routing.passed_on.get(peer, NOTHING)
        originated = export.originated(peering, own, routing.policy)
        last = known.get(peer)
        if (
            last
            and last.passed_on is passed_on
            and (last.originated, last.shadowed) == (originated, shadowed)
        ):
            found[peer] = last
        else:
            found[peer] = Table(originated, passed_on, shadowed, _joined(originated, passed_on, shadowed))
    return found


def _joined(own: Exported, learned: Exported, shadowed: frozenset[Prefix]) -> Exported:
    """Our own goes before what is learned."""
    others = learned.announcements
    if shadowed:
        others = frozenset(a for a in others if a.prefix not in shadowed)
    hits = Counter(own.hits) + Counter(learned.hits)
    return Exported(own.announcements | others, own.refused, hits)
