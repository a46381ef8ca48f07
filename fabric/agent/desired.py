"""Decide everything this node should have, from the snapshot, its part in BGP and what the host is. Pure.

Where the pure packages meet: they know nothing of each other, and hand values to one another here.

    snapshot ─ endpoints ──────────────────────▶ links, workload routes ─┐
        │                                                                ├─▶ FIB (plan.routes.merge)
        └─ own blocks ─┬─▶ blackholes ───────────────────────────────────┤
                       ▼                                                 │
                  adj-RIBs-out (agent.adj_ribs_out) ──▶ speaker          │
                       ▲                                                 │
    agent.routing ─────┴─▶ routes by BGP ────────────────────────────────┤
    agent.overlay ────────▶ tunnels, routes through them ────────────────┘
    agent.policing ──────────────────────────────────────────────────────▶ rules, ipsets

Computed whole each time, but for agent.routing (with agent.overlay) and agent.policing, which take longer and are
computed apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from bgp.export import Own
from bgp.rib import AdjRibOut, Prefix
from bgp.sessions import Peerings
from bgp.speaker.seam import Wanted
from fabric.agent.adj_ribs_out import AdjRibsOut, adj_ribs_out
from fabric.agent.compose import Composed
from fabric.agent.loc_rib import LocRib
from fabric.agent.routing import Host, Routing
from fabric.agent.snapshot import Snapshot
from fabric.ipam.assign import own_blocks
from fabric.model.ippool import IPPool
from fabric.model.node import Node
from fabric.plan import asked, endpoints, mtu
from fabric.plan import routes as plan_routes
from fabric.plan.encap import Encap
from fabric.plan.links import Veth
from fabric.plan.routes import Route, RouteKey, RouteSet
from fabric.plan.tunnels import Tunnel


@dataclass(frozen=True)
class Desired:
    """What this node should have.

    `whole` says that what the datastore wants is all in it, `settled` that what BGP wants is as well: until
    then a thing that is not in it may be one that was not heard of yet, and nothing is taken away for it.
    """

    whole: bool = False
    settled: bool = False
    policy: Composed | None = None
    tunnels: Mapping[str, Tunnel] = field(default_factory=dict)
    links: Mapping[str, Veth] = field(default_factory=dict)
    routes: RouteSet = field(default_factory=dict)
    wanted: Wanted = field(default_factory=Wanted)
    routing: Routing = field(default_factory=Routing)
    own: Own = field(default_factory=Own)
    adj_ribs_out: AdjRibsOut = field(default_factory=dict)

    @property
    def peerings(self) -> Peerings:
        return self.routing.peerings

    @property
    def loc_rib(self) -> LocRib:
        return self.routing.loc_rib


def desire(
    node: str,
    snapshot: Snapshot,
    host: Host,
    routing: Routing,
    known: AdjRibsOut,
    policy: Composed | None = None,
    no_offload: AbstractSet[Encap] = frozenset(),
) -> Desired:
    """Return what `node` should have; `known` are the last adj-RIBs-out, kept where they come out the same.

    The link does not take the checksums of `no_offload` right.

    Without its Node resource it takes no part in BGP, but its containers keep their links: their
    endpoints are still there, and deleting a Node by mistake must not cut them off.
    """
    me = snapshot.get(Node, node)
    # An attach may come before they are worked out.
    mtus = routing.overlay.mtus or mtu.workload(host.mtu, map(asked.pool, snapshot.all(IPPool)))
    links = [veth for e in snapshot.endpoints(node) if (veth := endpoints.veth(e, mtus))]
    blocks = [stored.block.prefix for stored in own_blocks(snapshot.view(node))]
    own = Own(
        blocks=frozenset(blocks),
        workloads={ip_network(address): link.name for link in links for address in link.addresses},
        loopback=host.here.loopback & {held.ip for held in me.addresses} if me else frozenset(),
    )
    out = adj_ribs_out(routing, own, known)
    peerings = routing.peerings.peerings
    return Desired(
        whole=snapshot.whole,
        settled=snapshot.whole and routing.ribs.settled,
        policy=policy,
        tunnels={
            tunnel.name: replace(tunnel, offload=tunnel.encap not in no_offload)
            for tunnel in routing.overlay.tunnels
        },
        links={link.name: link for link in links},
        routes=plan_routes.merge(
            workloads=endpoints.routes(links),
            bgp=routing.routes,  # merged with what goes before it, when it was worked out
            blackholes=[_blackhole(b) for b in blocks if b.prefixlen < b.max_prefixlen],
        ),
        wanted=Wanted(
            frozenset(p.spec for p in peerings),
            {peer: table.exported.announcements for peer, table in out.items()},
            {p.spec.peer: p.max_prefixes for p in peerings if p.max_prefixes},
        ),
        routing=routing,
        own=own,
        adj_ribs_out=out,
    )


def joined(told: Wanted, wanted: Wanted) -> Wanted:
    """Return `wanted` with everything that was `told` before it: nothing is withdrawn, no session ends."""
    peers = {spec.peer for spec in told.sessions}
    announce = {
        peer: _with_earlier(told.announce.get(peer, frozenset()), wanted.announce.get(peer, frozenset()))
        for peer in told.announce.keys() | wanted.announce.keys()
    }
    sessions = told.sessions | {s for s in wanted.sessions if s.peer not in peers}
    return Wanted(sessions, announce, {**told.max_prefixes, **wanted.max_prefixes})


def _with_earlier(told: AdjRibOut, wanted: AdjRibOut) -> AdjRibOut:
    prefixes = {announcement.prefix for announcement in wanted}
    return wanted | {earlier for earlier in told if earlier.prefix not in prefixes}


def _blackhole(prefix: Prefix) -> Route:
    return Route(RouteKey(prefix), frozenset(), blackhole=True)
