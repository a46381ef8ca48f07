"""Decide the loc-RIB and the routes that follow from it, from what the peers sent. Pure.

    adj-RIB-in ─▶ import filter ─▶ next hop ─▶ decision ─▶ loc-RIB ─▶ routes
                                       ▲                      │
                                       └──── what is left ────┘

A next hop that the host's own routes do not reach may be reached by one that the loc-RIB has by then (a node's address
that a ToR announces). Each such round looks only at what is left: what has been resolved stays as it was, so a
next hop never comes to depend on itself, and the end does not depend on who was heard first.

Where a tunnel takes packets to the next hop, it is the tunnel's far end that has to be reached, and a default route is
a way to it: what goes there is between two nodes, whoever is in between.

Recomputed whole, and only when an input changed: an attach leaves all of them alone, and must not pay
for ten thousand routes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_network

from bgp import decision, filters
from bgp.decision import Best, Candidate
from bgp.filters import ImportPolicy
from bgp.nexthop import Hop, LongestMatch, Reach, Resolved
from bgp.peering import Here, Peering, StaticRoute
from bgp.rib import Address, AdjRibIn, Path, Prefix
from bgp.rules import RuleId
from fabric.agent import underlay
from fabric.agent.underlay import LINK_LOCAL, displacing_nobody
from fabric.agent.ways import Way, Ways
from fabric.plan.routes import NextHop, Route, RouteKey

ROUNDS = 4  # how often the loc-RIB is asked for the next hops that are left
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
    ways: Ways = field(default_factory=Ways)

    def same(self, other: Inputs) -> bool:
        """The tables are compared by identity: each change makes a new one."""
        return self.adj_rib_in is other.adj_rib_in and _settings(self) == _settings(other)


def _settings(of: Inputs) -> tuple[object, ...]:
    return of.peerings, of.policy, of.foreign_routes, of.peer_ids, of.static_routes, of.here, of.ways


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
    """A path that passed import, as it was received and as it goes on, and the tunnel that takes it, if one does."""

    received: Path
    path: Path
    peering: Peering
    way: Way | None = None

    @property
    def needs(self) -> Address:
        """What has to be reached."""
        return self.way.underlay if self.way else self.path.next_hop


@dataclass(frozen=True, slots=True)
class _Vias:
    """The way to what paths need, as far as it is known; nothing at all leads to what is `cut_off`.

    `far` has the node's address to which a tunnel's own packets go, by where packets go that it takes.
    """

    known: Mapping[Address, Resolved]
    cut_off: frozenset[Address]
    far: Mapping[Hop, Address]

    def of(self, one: _Waiting) -> Resolved | None:
        via = self.known.get(one.needs)
        if one.way is None:
            return via
        if via is None and one.needs in self.cut_off:
            return None
        return Resolved(one.way.hop.gateway, one.way.hop.device, via.metric if via else 0)

    def into_itself(self, prefix: Prefix, via: Resolved) -> bool:
        """Whether a route to `prefix` would lead the packets of the tunnel that `via` is into that tunnel."""
        ends = [self.far[hop] for hop in via.hops if hop in self.far] if self.far else []
        return any(end in prefix and not _is_nearer(self.known.get(end), prefix) for end in ends)


def _is_nearer(via: Resolved | None, prefix: Prefix) -> bool:
    """Whether `via` goes by a narrower prefix, or by the host's own route of the same one."""
    if via and via.through:
        return via.through[0].prefixlen > prefix.prefixlen
    return bool(via and via.within and via.within.prefixlen >= prefix.prefixlen)


def loc_rib(inputs: Inputs, known: LocRib) -> LocRib:
    """Return the loc-RIB of `inputs`: `known` itself where it was made of the same."""
    if known.inputs and inputs.same(known.inputs):
        return known
    static_routes, reach = _reach(inputs)
    vias = _vias(inputs.adj_rib_in, reach)
    waiting, refused, hits = _imported(inputs, vias)
    waiting = _tunnelled(waiting, inputs.ways, reach)
    far = {one.way.hop: one.way.underlay for one in waiting if one.way}
    vias |= {end: via for end in set(far.values()) - vias.keys() if (via := reach.resolve(end))}
    cut_off = underlay.cut_off(far.values(), inputs.foreign_routes, inputs.here)
    candidates, best, left = _decided(waiting, _Vias(vias, cut_off, far), reach, inputs.peer_ids)
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
        routes=displacing_nobody(map(_route, best.values()), inputs.foreign_routes),
        static_routes=static_routes,
    )


def _vias(tables: Mapping[Address, AdjRibIn], reach: Reach) -> dict[Address, Resolved]:
    """Return the way to each next hop that the host's own routes reach."""
    next_hops = {path.next_hop for table in tables.values() for path in table.values()}
    return {hop: via for hop in next_hops if (via := reach.resolve(hop))}


def _tunnelled(waiting: list[_Waiting], ways: Ways, reach: Reach) -> list[_Waiting]:
    """Add the tunnels. A next hop that no route may lead to is none with one either."""
    if not ways.pools:
        return waiting
    next_hops = {one.path.next_hop for one in waiting}
    closed = {next_hop for next_hop in next_hops if reach.why_closed(next_hop)}
    return [
        one
        if one.path.next_hop in closed or (way := ways.way(one.path.prefix, one.path.next_hop)) is None
        else _Waiting(one.received, one.path, one.peering, way)
        for one in waiting
    ]


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
    live = underlay.live(inputs.foreign_routes, inputs.here)
    links = Reach(live, closed)
    found = [
        _static(static, via) for static in inputs.static_routes if (via := links.resolve(static.gateway))
    ]
    routes = displacing_nobody(found, inputs.foreign_routes)
    return routes, Reach([*live, *underlay.hops(routes)], closed) if routes else links


def _static(static: StaticRoute, via: Resolved) -> Route:
    return Route(RouteKey(ip_network(static.peer)), frozenset({NextHop(via.gateway, via.device)}))


def _decided(
    waiting: Sequence[_Waiting],
    vias: _Vias,
    reach: Reach,
    peer_ids: Mapping[Address, IPv4Address],
) -> tuple[dict[Prefix, list[Candidate]], dict[Prefix, Best], Sequence[_Waiting]]:
    """Return the candidates, what is best among them, and what is left because nothing reaches its next hop."""
    candidates: dict[Prefix, list[Candidate]] = {}
    best: dict[Prefix, Best] = {}
    for _ in range(1 + ROUNDS):
        ready, waiting = _sorted_out(waiting, vias)
        for one, via in ready:
            candidate = Candidate(one.path, one.peering, via, peer_ids.get(one.peering.spec.peer))
            candidates.setdefault(one.path.prefix, []).append(candidate)
        changed = {one.path.prefix for one, _ in ready}
        best |= {prefix: decision.select(candidates[prefix]) for prefix in changed}
        if not ready or not waiting:
            break
        unknown = {one.needs for one in waiting}.union(vias.far.values()) - vias.known.keys()
        vias = replace(vias, known={**vias.known, **_through(unknown, best, reach)})
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
    waiting: Iterable[_Waiting], vias: _Vias
) -> tuple[list[tuple[_Waiting, Resolved]], list[_Waiting]]:
    ready: list[tuple[_Waiting, Resolved]] = []
    left: list[_Waiting] = []
    for one in waiting:
        via = vias.of(one)
        if via and not (_through_itself(one.path, via) or vias.into_itself(one.path.prefix, via)):
            ready.append((one, via))
        else:
            left.append(one)
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
