"""Count what the loc-RIB comes to for each peer. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bgp import filters
from bgp.prefixes import Cover
from bgp.rib import Address, Path, Prefix
from fabric.agent.loc_rib import LocRib


@dataclass(frozen=True)
class Counts:
    """What the loc-RIB comes to, by peer: the prefixes whose path takes part in the decision, and those in use.

    `looped` and `unreached` are prefixes without any usable path, one of which was refused for the own AS in it or for
    a next hop that nothing reaches; those inside own blocks are left out, as they come back from everywhere.
    """

    accepted: Mapping[Address, int] = field(default_factory=dict)
    best: Mapping[Address, int] = field(default_factory=dict)
    looped: Mapping[Address, list[Prefix]] = field(default_factory=dict)
    unreached: Mapping[Address, list[Prefix]] = field(default_factory=dict)
    next_hops: Mapping[Address, Address] = field(default_factory=dict)  # one of those that nothing reaches


class LastCounts:
    """Counts each loc-RIB once: reports are asked for far more often than it changes."""

    def __init__(self) -> None:
        self._last = (LocRib(), Counts())

    def of(self, loc_rib: LocRib) -> Counts:
        if self._last[0] is not loc_rib:
            self._last = (loc_rib, _counts(loc_rib))
        return self._last[1]


def _counts(loc_rib: LocRib) -> Counts:
    blocks = Cover(loc_rib.inputs.policy.own_blocks if loc_rib.inputs else ())

    def missed(paths: Iterable[Path]) -> dict[Address, list[Prefix]]:
        found: dict[Address, list[Prefix]] = {}
        for path in paths:
            if path.prefix not in loc_rib.best and blocks.of(path.prefix) is None:
                found.setdefault(path.peer, []).append(path.prefix)
        return found

    looped = (path for path, why in loc_rib.refused.items() if why.startswith(filters.OWN_AS))
    return Counts(
        accepted=Counter(c.path.peer for found in loc_rib.candidates.values() for c in found),
        best=Counter(c.path.peer for best in loc_rib.best.values() for c in best.multipath),
        looped=missed(looped),
        unreached=missed(loc_rib.unreached),
        next_hops={path.peer: path.next_hop for path in loc_rib.unreached},
    )
