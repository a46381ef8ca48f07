"""Decide the loc-RIB and the routes that follow from it, from what the peers sent. Pure.

    adj-RIB-in ─▶ import filter ─▶ next hop ─▶ decision ─▶ loc-RIB ─▶ routes

Recomputed whole, and only when an input changed: an attach leaves all of them alone, and must not pay
for ten thousand routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bgp import decision, filters, nexthop
from bgp.decision import Best, Candidate
from bgp.filters import ImportPolicy
from bgp.nexthop import Underlay
from bgp.rib import Address, AdjRibIn, Path, Prefix, SessionSpec
from fabric.plan.routes import NextHop, Route, RouteKey


@dataclass(frozen=True)
class Inputs:
    """Everything the loc-RIB depends on."""

    sessions: frozenset[SessionSpec]
    policy: ImportPolicy
    foreign_routes: tuple[Route, ...]
    adj_rib_in: Mapping[Address, AdjRibIn]

    def same(self, other: Inputs) -> bool:
        """The tables are compared by identity: each change makes a new one."""
        return self.adj_rib_in is other.adj_rib_in and (
            (self.sessions, self.policy, self.foreign_routes)
            == (other.sessions, other.policy, other.foreign_routes)
        )


@dataclass(frozen=True)
class LocRib:
    """What BGP makes of `inputs`.

    `refused` says for each received path that is not used why not.
    """

    inputs: Inputs | None = None
    best: Mapping[Prefix, Best] = field(default_factory=dict)
    refused: Mapping[Path, str] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()


def loc_rib(inputs: Inputs, known: LocRib) -> LocRib:
    """Return the loc-RIB of `inputs`: `known` itself where it was made of the same."""
    if known.inputs and inputs.same(known.inputs):
        return known
    candidates, refused = _candidates(inputs)
    best = decision.decide(candidates)
    return LocRib(
        inputs, best, refused, _displacing_nobody(map(_route, best.values()), inputs.foreign_routes)
    )


def _candidates(inputs: Inputs) -> tuple[list[Candidate], dict[Path, str]]:
    underlay = tuple(_underlay(inputs.foreign_routes))
    vias = {hop: nexthop.resolve(hop, underlay) for hop in _next_hops(inputs)}
    candidates: list[Candidate] = []
    refused: dict[Path, str] = {}
    for session in inputs.sessions:
        for path in inputs.adj_rib_in.get(session.peer, {}).values():
            if reason := filters.refusal(path, session, inputs.policy):
                refused[path] = reason
            elif via := vias[path.next_hop]:
                candidates.append(Candidate(path, session, via))
            else:
                refused[path] = f"next hop {path.next_hop} is on no link and behind no route but a default"
    return candidates, refused


def _next_hops(inputs: Inputs) -> set[Address]:
    return {path.next_hop for table in inputs.adj_rib_in.values() for path in table.values()}


def _underlay(routes: Iterable[Route]) -> Iterable[Underlay]:
    for route in routes:
        for hop in route.next_hops:
            if hop.device:
                yield Underlay(route.key.prefix, hop.gateway, hop.device, route.key.metric)


def _route(best: Best) -> Route:
    hops = frozenset(NextHop(c.via.gateway, c.via.device) for c in best.multipath)
    return Route(RouteKey(best.best.path.prefix), hops)


def _displacing_nobody(ours: Iterable[Route], foreign: Iterable[Route]) -> tuple[Route, ...]:
    """A stranger's route of the same prefix and metric would be replaced by ours, so it keeps its place."""
    held = {route.key for route in foreign}
    return tuple(route for route in ours if route.key not in held)
