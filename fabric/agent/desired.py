"""Decide everything this node should have, from the snapshot, what BGP told and what the host is. Pure.

Where the pure packages meet: they know nothing of each other, and hand values to one another here.

    snapshot ─ endpoints ──────────────▶ links, workload routes ─┐
        │                                                        ├─▶ FIB (plan.routes.merge)
        ├─ own blocks ──▶ blackholes, adj-RIB-out ───────────────┤
        └─ peers ──▶ sessions ─┐                                 │
    adj-RIB-in ─▶ import filter ─▶ next hop ─▶ decision ─▶ loc-RIB ┘
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bgp import decision, export, filters, nexthop, sessions
from bgp.decision import Best, Candidate
from bgp.filters import ImportPolicy
from bgp.nexthop import Underlay
from bgp.rib import Path, Prefix, SessionSpec
from bgp.sessions import Interface
from bgp.speaker.seam import Wanted
from fabric.agent.ribs import Ribs
from fabric.agent.snapshot import Snapshot
from fabric.ipam.assign import own_blocks
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.plan import endpoints
from fabric.plan import routes as plan_routes
from fabric.plan.links import Veth
from fabric.plan.routes import NextHop, Route, RouteKey, RouteSet

DEFAULT_ROUTE_ANNOTATION = "fabricctl.io/default-route"  # "install" on a Node: take it beside the host's own


@dataclass(frozen=True, slots=True)
class Host:
    """What this host is, read from its kernel: its own addresses, routes that are not ours, its MTU."""

    addresses: tuple[Interface, ...] = ()
    foreign_routes: tuple[Route, ...] = ()
    mtu: int = 1500


@dataclass(frozen=True)
class Desired:
    """What this node should have.

    `refused` says for each received path that is not used why not; `best` is the loc-RIB.
    """

    links: Mapping[str, Veth] = field(default_factory=dict)
    routes: RouteSet = field(default_factory=dict)
    wanted: Wanted = field(default_factory=Wanted)
    best: Mapping[Prefix, Best] = field(default_factory=dict)
    refused: Mapping[Path, str] = field(default_factory=dict)


def desire(node: str, snapshot: Snapshot, ribs: Ribs, host: Host) -> Desired:
    """Return what `node` should have.

    Without its Node resource it takes no part in BGP, but its containers keep their links: their
    endpoints are still there, and deleting a Node by mistake must not cut them off.
    """
    me = snapshot.get(Node, node)
    links = [veth for e in snapshot.endpoints(node) if (veth := endpoints.veth(e, host.mtu))]
    blocks = [stored.block.prefix for stored in own_blocks(snapshot.view(node))]
    wanted = _wanted(me, snapshot, host, blocks, links) if me else Wanted()
    default_routes = _default_routes(me, host.foreign_routes) if me else frozenset[int]()
    candidates, refused = _candidates(snapshot, ribs, host, blocks, wanted.sessions, default_routes)
    best = decision.decide(candidates)
    return Desired(
        links={link.name: link for link in links},
        routes=plan_routes.merge(
            workloads=endpoints.routes(links),
            bgp=_displacing_nobody(map(_route, best.values()), host.foreign_routes),
            blackholes=[_blackhole(b) for b in blocks if b.prefixlen < b.max_prefixlen],
        ),
        wanted=wanted,
        best=best,
        refused=refused,
    )


def _wanted(me: Node, snapshot: Snapshot, host: Host, blocks: list[Prefix], links: Iterable[Veth]) -> Wanted:
    local = sessions.local(me, snapshot.bgp_configuration(), host.addresses)
    if local is None:
        return Wanted()
    exported = [p.spec.cidr for p in snapshot.all(IPPool) if not p.spec.disable_bgp_export]
    addresses = [address for link in links for address in link.addresses]
    specs = sessions.sessions(local, snapshot.peers())
    return Wanted(specs, {s.peer: export.adj_rib_out(s, blocks, addresses, exported) for s in specs})


def _candidates(
    snapshot: Snapshot,
    ribs: Ribs,
    host: Host,
    blocks: list[Prefix],
    specs: Iterable[SessionSpec],
    default_routes: frozenset[int],
) -> tuple[list[Candidate], dict[Path, str]]:
    policy = ImportPolicy(
        pools=frozenset(p.spec.cidr for p in snapshot.all(IPPool)),
        own_blocks=frozenset(blocks),
        default_routes=default_routes,
    )
    underlay = tuple(_underlay(host.foreign_routes))
    candidates: list[Candidate] = []
    refused: dict[Path, str] = {}
    for session in specs:
        for path in ribs.adj_rib_in.get(session.peer, {}).values():
            if reason := filters.refusal(path, session, policy):
                refused[path] = reason
            elif via := nexthop.resolve(path.next_hop, underlay):
                candidates.append(Candidate(path, session, via))
            else:
                refused[path] = f"next hop {path.next_hop} is on no link and behind no route but a default"
    return candidates, refused


def _default_routes(me: Node, foreign: Iterable[Route]) -> frozenset[int]:
    """The families whose default may come by BGP: those the host has none of, or all on opt-in."""
    if me.metadata.annotations.get(DEFAULT_ROUTE_ANNOTATION) == "install":
        return frozenset({4, 6})
    return frozenset({4, 6}) - {r.key.prefix.version for r in foreign if r.key.prefix.prefixlen == 0}


def _underlay(routes: Iterable[Route]) -> Iterable[Underlay]:
    for route in routes:
        for hop in route.next_hops:
            if hop.device:
                yield Underlay(route.key.prefix, hop.gateway, hop.device, route.key.metric)


def _route(best: Best) -> Route:
    hops = frozenset(NextHop(c.via.gateway, c.via.device) for c in best.multipath)
    return Route(RouteKey(best.best.path.prefix), hops)


def _displacing_nobody(ours: Iterable[Route], foreign: Iterable[Route]) -> list[Route]:
    """A stranger's route of the same prefix and metric would be replaced by ours, so it keeps its place."""
    held = {route.key for route in foreign}
    return [route for route in ours if route.key not in held]


def _blackhole(prefix: Prefix) -> Route:
    return Route(RouteKey(prefix), frozenset(), blackhole=True)
