"""Decide which paths to a prefix are used: the decision process of RFC 4271 §9.1, with multipath.

Each step eliminates; none is a sort key, because MED is comparable only between paths from one
neighbouring AS, and pairwise comparison is therefore not transitive (§9.1.2.2 c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bgp.nexthop import Resolved
from bgp.rib import Origin, Path, Prefix, SessionSpec

MULTIPATH_LIMIT = 16
DEFAULT_LOCAL_PREF = 100
_ORIGIN_RANK = {Origin.IGP: 0, Origin.EGP: 1, Origin.INCOMPLETE: 2}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path that passed import, with the session it came by and where its next hop leads."""

    path: Path
    session: SessionSpec
    via: Resolved


@dataclass(frozen=True, slots=True)
class Best:
    """The loc-RIB's entry for one prefix: `best`, and every path that shares its load, best included."""

    best: Candidate
    multipath: tuple[Candidate, ...]


def decide(candidates: Iterable[Candidate]) -> Mapping[Prefix, Best]:
    """Return the loc-RIB: one entry for each prefix that has a candidate."""
    by_prefix: dict[Prefix, list[Candidate]] = {}
    for candidate in candidates:
        by_prefix.setdefault(candidate.path.prefix, []).append(candidate)
    return {prefix: select(found) for prefix, found in by_prefix.items()}


def select(candidates: Sequence[Candidate]) -> Best:
    """Return the best path of one prefix and its multipath set, at most MULTIPATH_LIMIT wide.

    Paths are equal for multipath when nothing up to and including the interior cost (RFC 4271
    §9.1.2.2 e) tells them apart; the peer's address breaks the remaining tie for `best`.

    Raises:
        ValueError: `candidates` is empty; a prefix with no candidates is a withdrawal.
    """
    if not candidates:
        raise ValueError("no candidates")
    left = _keep_lowest(candidates, lambda c: -_local_pref(c))
    left = _keep_lowest(left, lambda c: len(c.path.as_path))
    left = _keep_lowest(left, lambda c: _ORIGIN_RANK[c.path.origin])
    left = drop_worse_med(left)
    left = _keep_lowest(left, lambda c: not c.session.external)
    left = _keep_lowest(left, lambda c: c.via.metric)
    left = sorted(left, key=lambda c: (c.path.peer.version, int(c.path.peer)))
    return Best(left[0], tuple(left[:MULTIPATH_LIMIT]))


def drop_worse_med(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep, for each neighbouring AS, only the paths with the lowest MED; absent counts as 0.

    Source: RFC 4271 §9.1.2.2 (c).
    """
    lowest: dict[int, int] = {}
    for candidate in candidates:
        neighbour, med = _neighbour_as(candidate), candidate.path.med or 0
        lowest[neighbour] = min(med, lowest.get(neighbour, med))
    return [c for c in candidates if (c.path.med or 0) == lowest[_neighbour_as(c)]]


def _neighbour_as(candidate: Candidate) -> int:
    return candidate.path.as_path[0] if candidate.path.as_path else candidate.session.local_as


def _local_pref(candidate: Candidate) -> int:
    # What an external peer sent counts as absent (RFC 4271 §5.1.5): it must not choose our way out.
    sent = None if candidate.session.external else candidate.path.local_pref
    return DEFAULT_LOCAL_PREF if sent is None else sent


def _keep_lowest(candidates: Sequence[Candidate], cost: Callable[[Candidate], int]) -> list[Candidate]:
    least = min(map(cost, candidates))
    return [c for c in candidates if cost(c) == least]
