"""Decide the loc-RIB and the routes that follow from it, from what the peers sent. Pure.

    adj-RIB-in ─▶ import filter ─▶ next hop ─▶ decision ─▶ loc-RIB ─▶ routes
                                       ▲                      │
                                       └──── what is left ────┘

A next hop that the host's own routes do not reach may be reached by one that the loc-RIB has by then (a node's address
that a ToR announces). Each such round looks only at what is left: what has been resolved stays as it was, so a
next hop never comes to depend on itself, and the end does not depend on who was heard first.

Recomputed whole, and only when an input changed: an attach leaves all of them alone, and must not pay
for ten thousand routes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network

from bgp import decision, filters
from bgp.decision import Best, Candidate
from bgp.filters import ImportPolicy
from bgp.nexthop import Hop, LongestMatch, Reach, Resolved, Underlay
from bgp.peering import Here, Peering, StaticRoute
from bgp.rib import Address, AdjRibIn, Path, Prefix
from bgp.rules import RuleId
from fabric.plan.routes import NextHop, Route, RouteKey

ROUNDS = 4  # how often the loc-RIB is asked for the next hops that are left
LINK_LOCAL = ip_network("fe80::/10")  # on every link, so that no route says on which
UNREACHED = "next hop {} is on no link that has a carrier, and behind no route but a default or this one"


@dataclass(frozen=True)
class Inputs:
    """Everything the loc-RIB depends on."""

    peerings: tuple[Peering, ...]
    policy: ImportPolicy
    foreign_routes: tuple[Route, ...]
    adj_rib_in: Mapping[Address, AdjRibIn]
    peer_ids: Mapping[Address, IPv4Address] = field(default_factory=dict)  # by peer, its BGP identifier
    static_routes: tuple[StaticRoute, ...] = ()
    here: Here = field(default_factory=Here)

    def same(self, other: Inputs) -> bool:
        """The tables are compared by identity: each change makes a new one."""
        return self.adj_rib_in is other.adj_rib_in and _settings(self) == _settings(other)


def _settings(of: Inputs) -> tuple[object, ...]:
    return of.peerings, of.policy, of.foreign_routes, of.peer_ids, of.static_routes, of.here


@dataclass(frozen=True)
class LocRib:
    """What BGP makes of `inputs`.

    `candidates` are the paths that took part in the decision, `best` what came of it. `refused` says for each
    received path that took no part why not; `unreached` are those among them whose next hop nothing reaches. `hits`
    says how many paths of a peer each rule decided.
    """

    inputs: Inputs | None = None
    candidates: Mapping[Prefix, Sequence[Candidate]] = field(default_factory=dict)
    best: Mapping[Prefix, Best] = field(default_factory=dict)
    refused: Mapping[Path, str] = field(default_factory=dict)
    unreached: tuple[Path, ...] = ()
    hits: Mapping[tuple[Address, RuleId], int] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    static_routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A path that passed import, as it was received and as it goes on."""

    received: Path
    path: Path
    peering: Peering


def loc_rib(inputs: Inputs, known: LocRib) -> LocRib:
    """Return the loc-RIB of `inputs`: `known` itself where it was made of the same."""
    if known.inputs and inputs.same(known.inputs):
        return known
    static_routes, reach = _reach(inputs)
    vias = _vias(inputs.adj_rib_in, reach)
    waiting, refused, hits = _imported(inputs, vias)
    candidates, best, left = _decided(waiting, vias, reach, inputs.peer_ids)
    unreached = tuple(one.received for one in left)
    refused |= {
        path: reach.why_closed(path.next_hop) or UNREACHED.format(path.next_hop) for path in unreached
    }
    return LocRib(
        inputs=inputs,
        candidates=candidates,
        best=best,
        refused=refused,
        unreached=unreached,
        hits=hits,
        routes=_displacing_nobody(map(_route, best.values()), inputs.foreign_routes),
        static_routes=static_routes,
    )


def _vias(tables: Mapping[Address, AdjRibIn], reach: Reach) -> dict[Address, Resolved]:
    """Return the way to each next hop that the host's own routes reach."""
    next_hops = {path.next_hop for table in tables.values() for path in table.values()}
    return {hop: via for hop in next_hops if (via := reach.resolve(hop))}


def _imported(
    inputs: Inputs, vias: Mapping[Address, Resolved]
) -> tuple[list[_Waiting], dict[Path, str], Counter[tuple[Address, RuleId]]]:
    waiting: list[_Waiting] = []
    refused: dict[Path, str] = {}
    hits: Counter[tuple[Address, RuleId]] = Counter()
    for peering in inputs.peerings:
        peer, take = peering.spec.peer, filters.importer(peering, inputs.policy)
        for path in inputs.adj_rib_in.get(peer, {}).values():
            via = vias.get(path.next_hop)
            imported = take(path, via.device if via else "")
            if imported.rule:
                hits[peer, imported.rule] += 1
            if imported.path is None:
                refused[path] = imported.why
            else:
                waiting.append(_Waiting(path, imported.path, peering))
    return waiting, refused, hits


def _reach(inputs: Inputs) -> tuple[tuple[Route, ...], Reach]:
    """Return the static routes as the kernel is to have them, and what resolves next hops, those routes included."""
    own = {uplink.address.ip for uplink in inputs.here.uplinks} | inputs.here.loopback
    closed = {
        block: f"the next hop is in {block}, which is this node's own" for block in inputs.policy.own_blocks
    }
    closed |= {ip_network(address): "the next hop is this node" for address in own}
    closed[LINK_LOCAL] = "a link-local next hop does not say on which link it is"
    dead = {uplink.device for uplink in inputs.here.uplinks if not uplink.carrier}
    underlay = [hop for hop in _underlay(inputs.foreign_routes) if hop.device not in dead]
    links = Reach(underlay, closed)
    found = [
        _static(static, via) for static in inputs.static_routes if (via := links.resolve(static.gateway))
    ]
    routes = _displacing_nobody(found, inputs.foreign_routes)
    return routes, Reach([*underlay, *_underlay(routes)], closed) if routes else links


def _static(static: StaticRoute, via: Resolved) -> Route:
    return Route(RouteKey(ip_network(static.peer)), frozenset({NextHop(via.gateway, via.device)}))


def _underlay(routes: Iterable[Route]) -> Iterable[Underlay]:
    for route in routes:
        if route.key.prefix.version == 6 and route.key.prefix.network_address in LINK_LOCAL:
            continue
        for hop in route.next_hops:
            if hop.device:
                yield Underlay(route.key.prefix, hop.gateway, hop.device, route.key.metric)


def _decided(
    waiting: Sequence[_Waiting],
    vias: Mapping[Address, Resolved],
    reach: Reach,
    peer_ids: Mapping[Address, IPv4Address],
) -> tuple[dict[Prefix, list[Candidate]], dict[Prefix, Best], Sequence[_Waiting]]:
    """Return the candidates, what is best among them, and what is left because nothing reaches its next hop."""
    candidates: dict[Prefix, list[Candidate]] = {}
    best: dict[Prefix, Best] = {}
    for _ in range(1 + ROUNDS):
        ready, waiting = _sorted_out(waiting, vias)
        for one in ready:
            peer = one.peering.spec.peer
            candidate = Candidate(one.path, one.peering, vias[one.path.next_hop], peer_ids.get(peer))
            candidates.setdefault(one.path.prefix, []).append(candidate)
        changed = {one.path.prefix for one in ready}
        best |= {prefix: decision.select(candidates[prefix]) for prefix in changed}
        if not ready or not waiting:
            break
        unknown = {one.path.next_hop for one in waiting} - vias.keys()
        vias = {**vias, **_through(unknown, best, reach)}
    return candidates, best, waiting


def _through(
    next_hops: Iterable[Address], best: Mapping[Prefix, Best], reach: Reach
) -> dict[Address, Resolved]:
    table = LongestMatch(best)
    return {
        hop: _behind(entry) for hop in next_hops if not reach.why_closed(hop) and (entry := table.find(hop))
    }


def _behind(entry: Best) -> Resolved:
    """The way to a next hop that `entry` covers; one step farther than what reaches `entry` itself."""
    first, *others = entry.next_hops
    through = dict.fromkeys([entry.best.path.prefix, *(p for c in entry.multipath for p in c.via.through)])
    return Resolved(first.gateway, first.device, entry.best.via.metric + 1, tuple(others), tuple(through))


def _sorted_out(
    waiting: Iterable[_Waiting], vias: Mapping[Address, Resolved]
) -> tuple[list[_Waiting], list[_Waiting]]:
    ready: list[_Waiting] = []
    left: list[_Waiting] = []
    for one in waiting:
        via = vias.get(one.path.next_hop)
        (ready if via and not _through_itself(one.path, via) else left).append(one)
    return ready, left


def _through_itself(path: Path, via: Resolved) -> bool:
    """A route to `path`'s prefix would change, or be, the way to its own next hop (RFC 4271 §9.1.2.1)."""
    prefix = path.prefix
    if not via.through:
        # The kernel prefers the host's own route of the same prefix. A narrower one of ours would take its place.
        return via.within is not None and prefix.prefixlen > via.within.prefixlen and path.next_hop in prefix
    closer = prefix.prefixlen >= via.through[0].prefixlen
    return prefix in via.through or (closer and path.next_hop in prefix)


def _route(best: Best) -> Route:
    return Route(RouteKey(best.best.path.prefix), frozenset(map(_hop, best.next_hops)))


def _hop(hop: Hop) -> NextHop:
    return NextHop(hop.gateway, hop.device)


def _displacing_nobody(ours: Iterable[Route], foreign: Iterable[Route]) -> tuple[Route, ...]:
    """A stranger's route of the same prefix and metric would be replaced by ours, so it keeps its place."""
    held = {route.key for route in foreign}
    return tuple(route for route in ours if route.key not in held)
