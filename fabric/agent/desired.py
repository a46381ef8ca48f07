"""Decide everything this node should have, from the snapshot, what BGP told and what the host is. Pure.

Where the pure packages meet: they know nothing of each other, and hand values to one another here.

    snapshot ─ endpoints ──────────────▶ links, workload routes ─┐
        │                                                        ├─▶ FIB (plan.routes.merge)
        ├─ own blocks ──▶ blackholes, adj-RIB-out ───────────────┤
        └─ peers ──▶ sessions ─┐                                 │
                               ▼                                 │
    adj-RIB-in ────────────────▶ loc-RIB (agent.loc_rib) ────────┘
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bgp import export, sessions
from bgp.filters import ImportPolicy
from bgp.rib import AdjRibOut, Prefix
from bgp.sessions import Interface
from bgp.speaker.seam import Wanted
from fabric.agent.loc_rib import Inputs, LocRib, loc_rib
from fabric.agent.ribs import Ribs
from fabric.agent.snapshot import Snapshot
from fabric.ipam.assign import own_blocks
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.plan import endpoints
from fabric.plan import routes as plan_routes
from fabric.plan.links import Veth
from fabric.plan.routes import Route, RouteKey, RouteSet

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

    `whole` says that what the datastore wants is all in it, `settled` that what BGP wants is as well: until
    then a thing that is not in it may be one that was not heard of yet, and nothing is taken away for it.
    """

    whole: bool = False
    settled: bool = False
    links: Mapping[str, Veth] = field(default_factory=dict)
    routes: RouteSet = field(default_factory=dict)
    wanted: Wanted = field(default_factory=Wanted)
    loc_rib: LocRib = field(default_factory=LocRib)


def desire(node: str, snapshot: Snapshot, ribs: Ribs, host: Host, known: LocRib) -> Desired:
    """Return what `node` should have; `known` is the last loc-RIB, kept where nothing it depends on changed.

    Without its Node resource it takes no part in BGP, but its containers keep their links: their
    endpoints are still there, and deleting a Node by mistake must not cut them off.
    """
    me = snapshot.get(Node, node)
    links = [veth for e in snapshot.endpoints(node) if (veth := endpoints.veth(e, host.mtu))]
    blocks = [stored.block.prefix for stored in own_blocks(snapshot.view(node))]
    wanted = _wanted(me, snapshot, host, blocks, links) if me else Wanted()
    policy = ImportPolicy(
        pools=frozenset(p.spec.cidr for p in snapshot.all(IPPool)),
        own_blocks=frozenset(blocks),
        default_routes=_default_routes(me, host.foreign_routes) if me else frozenset(),
    )
    heard = loc_rib(Inputs(wanted.sessions, policy, host.foreign_routes, ribs.adj_rib_in), known)
    return Desired(
        whole=snapshot.whole,
        settled=snapshot.whole and ribs.settled,
        links={link.name: link for link in links},
        routes=plan_routes.merge(
            workloads=endpoints.routes(links),
            bgp=heard.routes,
            blackholes=[_blackhole(b) for b in blocks if b.prefixlen < b.max_prefixlen],
        ),
        wanted=wanted,
        loc_rib=heard,
    )


def _wanted(me: Node, snapshot: Snapshot, host: Host, blocks: list[Prefix], links: Iterable[Veth]) -> Wanted:
    local = sessions.local(me, snapshot.bgp_configuration(), host.addresses)
    if local is None:
        return Wanted()
    exported = [p.spec.cidr for p in snapshot.all(IPPool) if not p.spec.disable_bgp_export]
    addresses = [address for link in links for address in link.addresses]
    specs = sessions.sessions(local, snapshot.peers())
    return Wanted(specs, {s.peer: export.adj_rib_out(s, blocks, addresses, exported) for s in specs})


def joined(told: Wanted, wanted: Wanted) -> Wanted:
    """Return `wanted` with everything that was `told` before it: nothing is withdrawn, no session ends."""
    peers = {spec.peer for spec in told.sessions}
    announce = {
        peer: _with_earlier(told.announce.get(peer, frozenset()), wanted.announce.get(peer, frozenset()))
        for peer in told.announce.keys() | wanted.announce.keys()
    }
    return Wanted(told.sessions | {s for s in wanted.sessions if s.peer not in peers}, announce)


def _with_earlier(told: AdjRibOut, wanted: AdjRibOut) -> AdjRibOut:
    prefixes = {announcement.prefix for announcement in wanted}
    return wanted | {earlier for earlier in told if earlier.prefix not in prefixes}


def _default_routes(me: Node, foreign: Iterable[Route]) -> frozenset[int]:
    """The families whose default may come by BGP: those the host has none of, or all on opt-in."""
    if me.metadata.annotations.get(DEFAULT_ROUTE_ANNOTATION) == "install":
        return frozenset({4, 6})
    return frozenset({4, 6}) - {r.key.prefix.version for r in foreign if r.key.prefix.prefixlen == 0}


def _blackhole(prefix: Prefix) -> Route:
    return Route(RouteKey(prefix), frozenset(), blackhole=True)
