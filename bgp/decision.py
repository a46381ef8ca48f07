"""Decide which paths to a prefix are used: the decision process of RFC 4271 §9.1, with multipath.

Each step eliminates; none is a sort key, because MED is comparable only between paths from one
neighbouring AS, and pairwise comparison is therefore not transitive (§9.1.2.2 c). That a next hop resolves is no step
here: a path whose next hop does not is no candidate (`bgp.nexthop`). Where it began is: an external peer's
preference was taken off, or replaced by a filter's, on import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from bgp.nexthop import Hop, Resolved
from bgp.peering import Peering
from bgp.rib import Origin, Path, SessionSpec

MULTIPATH_LIMIT = 16
DEFAULT_LOCAL_PREF = 100
_ORIGIN_RANK = {Origin.IGP: 0, Origin.EGP: 1, Origin.INCOMPLETE: 2}
_UNKNOWN_ID = 2**32  # after every one that is known


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path that passed import, with the session it came by and where its next hop leads.

    `peer_id` is the BGP identifier of the peer that sent it, None where it is not known.
    """

    path: Path
    peering: Peering
    via: Resolved
    peer_id: IPv4Address | None = None

    @property
    def session(self) -> SessionSpec:
        return self.peering.spec


@dataclass(frozen=True, slots=True)
class Best:
    """The loc-RIB's entry for one prefix: `best`, and every path that shares its load, best first."""

    best: Candidate
    multipath: tuple[Candidate, ...]

    @property
    def next_hops(self) -> tuple[Hop, ...]:
        """Where packets go, each way once: two paths may lead through one router."""
        return tuple(dict.fromkeys(hop for c in self.multipath for hop in c.via.hops))[:MULTIPATH_LIMIT]


@dataclass(frozen=True, slots=True)
class _Step:
    """Keeps the candidates of the lowest `cost` among those that may be compared: the ones alike in `within`.

    `lost` says to an operator why the first one lost to the second.
    """

    cost: Callable[[Candidate], int]
    lost: Callable[[Candidate, Candidate], str]
    within: Callable[[Candidate], int] = lambda _: 0

    def keep(self, candidates: list[Candidate]) -> list[Candidate]:
        costs = [self.cost(c) for c in candidates]
        if costs.count(costs[0]) == len(costs):
            return candidates
        winners = self.winners(candidates)
        return [
            c for c, cost in zip(candidates, costs, strict=True) if cost == self.cost(winners[self.within(c)])
        ]

    def winners(self, candidates: Iterable[Candidate]) -> dict[int, Candidate]:
        found: dict[int, Candidate] = {}
        for candidate in candidates:
            rival = found.setdefault(self.within(candidate), candidate)
            if self.cost(candidate) < self.cost(rival):
                found[self.within(candidate)] = candidate
        return found


def _local_pref(candidate: Candidate) -> int:
    sent = candidate.path.local_pref
    return DEFAULT_LOCAL_PREF if sent is None else sent


def _length(candidate: Candidate) -> int:
    return len(candidate.path.as_path)


def _med(candidate: Candidate) -> int:
    return candidate.path.med or 0


def _neighbour_as(candidate: Candidate) -> int:
    return candidate.path.as_path[0] if candidate.path.as_path else candidate.session.local_as


_STEPS = (
    _Step(  # RFC 4271 §9.1.1
        lambda c: -_local_pref(c),
        lambda c, by: f"lower local preference ({_local_pref(c)} < {_local_pref(by)})",
    ),
    _Step(_length, lambda c, by: f"longer AS path ({_length(c)} > {_length(by)})"),  # §9.1.2.2 a
    _Step(  # b
        lambda c: _ORIGIN_RANK[c.path.origin],
        lambda c, by: f"worse origin ({c.path.origin} > {by.path.origin})",
    ),
    _Step(  # c
        _med,
        lambda c, by: f"higher MED ({_med(c)} > {_med(by)}) of those from AS {_neighbour_as(c)}",
        within=_neighbour_as,
    ),
    _Step(lambda c: not c.session.external, lambda _c, _by: "internal (another path is external)"),  # d
    _Step(  # e
        lambda c: c.via.metric,
        lambda c, by: f"higher interior cost ({c.via.metric} > {by.via.metric})",
    ),
)


def select(candidates: Sequence[Candidate]) -> Best:
    """Return the best path of one prefix and its multipath set, whatever the order of `candidates`.

    Paths are equal for multipath when nothing up to and including the interior cost (RFC 4271 §9.1.2.2 e) tells them
    apart; what is left to compare (`_tie_break`) chooses `best` among them.

    Raises:
        ValueError: `candidates` is empty; a prefix with no candidates is a withdrawal.
    """
    if not candidates:
        raise ValueError("no candidates")
    left = list(candidates)
    for step in _STEPS:
        if len(left) == 1:
            return Best(left[0], (left[0],))
        left = step.keep(left)
    shared = _sharing(sorted(left, key=_tie_break))
    return Best(shared[0], shared)


def explain(candidates: Sequence[Candidate]) -> dict[Path, str]:
    """Return what became of each path of one prefix: "" for the best, "multipath" for those that share its load, and
    for the others the first step at which they lost, in an operator's words.
    """
    if not candidates:
        return {}
    fate: dict[Path, str] = {}
    left = list(candidates)
    for step in _STEPS:
        winners, kept = step.winners(left), step.keep(left)
        fate |= {c.path: step.lost(c, winners[step.within(c)]) for c in left if c not in kept}
        left = kept
    best, *shared = select(candidates).multipath
    fate |= {c.path: f"over the limit of {MULTIPATH_LIMIT} next hops" for c in left}
    fate |= {c.path: "multipath" for c in shared} | {best.path: ""}
    return {c.path: fate[c.path] for c in candidates}


def _tie_break(candidate: Candidate) -> tuple[int, int, int, int]:
    """The rest is a total order: lowest BGP identifier (RFC 4271 §9.1.2.2 f), the originator's in its place and then
    the shortest cluster list (RFC 4456 §9), lowest address of the peer (g).
    """
    path = candidate.path
    identifier = path.originator_id or candidate.peer_id
    return (
        int(identifier) if identifier else _UNKNOWN_ID,
        len(path.cluster_list),
        path.peer.version,
        int(path.peer),
    )


def _sharing(equal: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The first ones with, together, no more next hops than the limit; the first one whatever it has."""
    hops: set[Hop] = set()
    shared: list[Candidate] = []
    for candidate in equal:
        with_it = hops.union(candidate.via.hops)
        if not shared or len(with_it) <= MULTIPATH_LIMIT:
            hops = with_it
            shared.append(candidate)
    return tuple(shared)
